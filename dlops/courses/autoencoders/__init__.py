"""E. Autoencoders."""
