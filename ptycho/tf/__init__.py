"""The TensorFlow backend; importing this package loads no framework."""
