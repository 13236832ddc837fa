"""Whether data fits in this machine's memory: checked before memory is allocated."""

from thalweg.contract.resources import memory, size_text
from thalweg.learning.data.errors import MemoryLackError

# Bytes of prepared samples up to which they are held in memory, where taking them is fastest.
MAX_HELD = 256 << 20


def check_memory(subject: str, needed: int) -> None:
    """Raises MemoryLackError, whose message begins with `subject`, if fewer bytes are available than are needed."""
    available = memory().available
    if needed > available:
        raise MemoryLackError(f"{subject} needs {size_text(needed)} of memory; this machine has {size_text(available)} available")


def is_held(needed: int) -> bool:
    """Whether samples of this number of bytes are held in memory: if it is at most MAX_HELD, and there is room."""
    return needed <= min(MAX_HELD, memory().available)
