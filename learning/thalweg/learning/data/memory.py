"""Whether data has room in this machine's memory, asked before any is taken."""

from thalweg.contract.resources import memory, size_text
from thalweg.learning.data.errors import MemoryLackError


def check_memory(subject: str, needed: int) -> None:
    """Raises MemoryLackError, whose message begins with `subject`, if fewer bytes are available than are needed."""
    available = memory().available
    if needed > available:
        raise MemoryLackError(f"{subject} needs {size_text(needed)} of memory; this machine has {size_text(available)} available")
