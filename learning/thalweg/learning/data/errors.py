"""What is wrong with data."""

from thalweg.learning.errors import MistakeError, NodeError


class DataError(MistakeError):
    """Data that cannot be used. The message begins with what it is about: a field of the job, or an argument, and a colon."""


class MemoryLackError(DataError, NodeError):
    """Data that is larger than the memory of this machine. Another machine may have room for it."""
