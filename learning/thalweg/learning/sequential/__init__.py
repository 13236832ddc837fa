"""Models of layers in a row, written with NumPy."""
