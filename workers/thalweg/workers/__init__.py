"""Differentiation: models, losses, data, the worker's loop, and the Ray fleet that runs workers."""

import thalweg.contract  # noqa: F401 - first, because it prepares gRPC
