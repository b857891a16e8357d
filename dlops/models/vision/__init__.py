"""Convolutional networks: classification, segmentation, verification."""
