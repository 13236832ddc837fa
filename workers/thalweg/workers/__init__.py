"""Differentiation: models, losses, data, the worker's loop, and the Ray fleet that runs workers."""
