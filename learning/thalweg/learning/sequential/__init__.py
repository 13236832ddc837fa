"""Models that are a sequence of layers, in NumPy."""
