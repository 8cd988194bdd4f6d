"""What a run has to do with its process: progress, interrupts, isolation."""
