"""Calls of older programs, which expect this package: see ``ptycho.workflows.components``."""
