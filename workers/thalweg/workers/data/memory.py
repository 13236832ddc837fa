"""Whether data has room in this machine's memory, asked before any is taken."""

from thalweg.contract.resources import memory
from thalweg.workers.data.errors import MemoryLackError

_MIB, _GIB = 1 << 20, 1 << 30


def check_memory(subject: str, needed: int) -> None:
    """Raises MemoryLackError, whose message begins with `subject`, if fewer bytes are available than are needed."""
    available = memory().available
    if needed > available:
        raise MemoryLackError(f"{subject} needs {_size(needed)} of memory, and this machine has {_size(available)} left")


def _size(count: int) -> str:
    return f"{count / _GIB:,.2f} GiB" if count >= _GIB / 10 else f"{count / _MIB:,.2f} MiB"
