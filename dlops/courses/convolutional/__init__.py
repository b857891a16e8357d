"""B. Convolutional networks and what they see."""
