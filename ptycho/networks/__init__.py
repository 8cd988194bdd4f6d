"""Architectures, their weights, schedules, and the bundle that holds them."""
