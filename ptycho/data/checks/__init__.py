"""Checks of a scan before any work: each finds one kind of fault, and mends it, warns of it or refuses it."""
