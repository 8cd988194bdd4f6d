"""Test objects, probes and trajectories, and the scans made from them."""
