"""A. Foundations: what trains, what stops it, what helps."""
