"""Autoencoders: plain, convolutional, variational, vector-quantised, masked."""
