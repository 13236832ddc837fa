"""Whether data fits in this machine's memory: checked before memory is allocated."""

from thalweg.contract.resources import memory, size_text
from thalweg.learning.data.errors import MemoryLackError

# Bytes of prepared samples up to which they are held in memory, where taking them is fastest. Samples of a table that take more
# are learned from group by group, in an order of their own: affects results.
MAX_HELD = 256 << 20
# Bytes of prepared samples that are read at once: larger groups of rows are cut. Affects results.
MAX_GROUP = 8 << 20
# Bytes of prepared groups of samples that are held, with those that are read ahead; always one group.
MAX_PREPARED = 128 << 20
# Bytes of groups of rows of a table that are held, decoded, those that were used last; always one group, however large it is.
MAX_DECODED = 64 << 20


def check_memory(subject: str, needed: int, remedy: str = "") -> None:
    """Raises MemoryLackError, whose message begins with `subject` and ends with `remedy`, if fewer bytes are available."""
    available = memory().available
    if needed > available:
        problem = f"{subject} needs {size_text(needed)} of memory; this machine has {size_text(available)} available"
        raise MemoryLackError(f"{problem}; {remedy}" if remedy else problem)


def is_small(needed: int) -> bool:
    """Whether samples of this number of bytes are held in memory wherever there is room."""
    return needed <= MAX_HELD


def is_held(needed: int) -> bool:
    """Whether samples of this number of bytes are held in memory: if it is at most MAX_HELD, and there is room."""
    return is_small(needed) and needed <= memory().available
