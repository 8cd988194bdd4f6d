"""Command lines: parse, configure, call one library function, print the paths written."""
