"""The reconstruction algorithm, written once, without an array library: a backend supplies the primitives."""
