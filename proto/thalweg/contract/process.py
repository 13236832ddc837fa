"""Settings of a whole process. Only entry points make them (commands, the fleet's processes, workers' actors), no import does."""

import ctypes
import os
import sys
import tempfile

_ENVIRONMENT = {
    # Ray's processes are forked from the process that starts it. With its support for forks gRPC would let each fork wait for its
    # own threads, and Ray, which waits for its processes, gives up on some of them. None of those processes uses gRPC's state.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    # Without gRPC's pool of threads for events, the thread that waits for a message polls the sockets itself: a message wakes
    # fewer threads, arrives sooner, and takes two thirds of the CPU time.
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener",
    # gRPC's lines on stderr repeat the errors that it raises.
    "GRPC_VERBOSITY": "NONE",
    # With memory of its own for each stream, cuBLAS gives equal bits. Read when CUDA starts.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
# M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3), the latter at most 32 MiB.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MAX_BYTES = 32 << 20
_IN_MEMORY = "/dev/shm"  # noqa: S108 - tempfile makes files there that this user alone can open


def prepare() -> None:
    """Prepares gRPC and cuBLAS, unless the environment says otherwise, the allocator, and a folder for temporary files.

    For a process of Thalweg.

    Must be called before `grpc` is imported, which then reads its settings. A program that uses Thalweg as a library may call
    it, too, before anything else: an embedded server answers sooner.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    keep_freed()
    find_temporary_folder()


def find_temporary_folder() -> None:
    """Sets TMPDIR to a folder in memory, if Python finds no folder for temporary files.

    Containers whose file system is read-only need it. Processes that this one starts inherit it.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        if os.access(_IN_MEMORY, os.W_OK):
            os.environ["TMPDIR"] = _IN_MEMORY


def keep_freed() -> None:
    """Lets this process keep up to some 32 MiB of freed memory, for each of malloc's arenas, instead of returning it at once.

    A message of 1 MiB is allocated and freed several times. Getting its pages from the system each time, zeroed, costs as much
    as sending it. Only for the GNU C library; elsewhere it does nothing, nor where the environment says what malloc keeps.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_MMAP_THRESHOLD, _MAX_BYTES)
        mallopt(_TRIM_THRESHOLD, _MAX_BYTES)
