"""Errors of data, and names in them."""

from collections.abc import Iterable

from thalweg.learning.errors import MistakeError, NodeError

# Names that a message lists.
_MAX_LISTED = 12


class DataError(MistakeError):
    """Data that cannot be used. The message begins with a field of the job or the name of an argument, and a colon."""


class MemoryLackError(DataError, NodeError):
    """Data that is larger than the memory of this machine. Another machine may have room for it."""


class AbsentError(DataError, NodeError):
    """Data that this machine does not find. Another machine may have it; if none has, the job is wrong."""


def listed(names: Iterable[str]) -> str:
    """Names for a message: the first ones, and how many more there are."""
    names = list(names)
    more = len(names) - _MAX_LISTED
    return ", ".join(map(repr, names[:_MAX_LISTED])) + (f" and {more:,} more" if more > 0 else "")
