"""The memory of processes that exchange large messages."""

import ctypes
import sys

# M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3), the latter at most 32 MiB.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST_BYTES = 32 << 20


def keep_freed() -> None:
    """Lets this process keep up to some 32 MiB of freed memory, for each of malloc's arenas, instead of giving it back at once.

    A message of 1 MiB is allocated and freed several times on its way. To take its pages from the system each time, zeroed,
    costs as much as to send it. Only for the GNU C library; elsewhere it does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_MMAP_THRESHOLD, _MOST_BYTES)
        mallopt(_TRIM_THRESHOLD, _MOST_BYTES)
