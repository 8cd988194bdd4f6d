"""Typed configuration and its bridge to the legacy parameter dictionary."""
