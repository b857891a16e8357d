"""F. Generative models."""
