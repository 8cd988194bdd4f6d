"""One scan in memory: reading, checks, scale, labels."""
