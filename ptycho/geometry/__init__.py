"""Where patches lie: canvas, groups, batches, ordered subsets."""
