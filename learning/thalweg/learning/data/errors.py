"""Errors of data."""

from thalweg.learning.errors import MistakeError, NodeError


class DataError(MistakeError):
    """Data that cannot be used. The message begins with a field of the job or the name of an argument, and a colon."""


class MemoryLackError(DataError, NodeError):
    """Data that is larger than the memory of this machine. Another machine may have room for it."""
