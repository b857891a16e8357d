"""Perceptrons and what keeps deep networks trainable."""
