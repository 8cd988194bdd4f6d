"""Training and inference from files to files, over an engine chosen by name."""
