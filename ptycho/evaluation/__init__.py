"""Metrics, comparison with a reference, verdict, figures."""
