"""How a worker and its server exchange parameters, gradients and data."""
