"""Data that needs no download: what ships inside scikit-learn, and short honest generators."""
