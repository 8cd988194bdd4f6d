"""Ptychographic reconstruction with physics-informed networks: core, commands and the TensorFlow backend."""
