"""Memory that two processes of one user on one machine share (Linux): see SharedMemory in `parameter_service.proto`.

A slab is a file without a name (memfd_create), which is passed over a Unix socket. So a process that dies in any way leaves
nothing behind, and only the machine's memory is the limit; a container's /dev/shm often holds 64 MiB.
"""

import ctypes
import fcntl
import mmap
import os
import secrets
import socket
import struct
import sys
import weakref
from functools import cache

import numpy as np
from numpy.typing import NDArray

# For mypy: the following exists on Linux only, and callers check the platform.
AVAILABLE = sys.platform.startswith("linux") and hasattr(os, "memfd_create")

_SEALS = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
_F_ADD_SEALS = 1033
_F_GET_SEALS = 1034
_NAME = "thalweg"
TOKEN_BYTES = 32
OK = b"\x01"
# A message on the socket is shorter than this.
MAX_BYTES = 4096


class SharingError(Exception):
    """Memory cannot be shared. The message says why."""


def create(size: int) -> int:
    """A file of `size` bytes of zeros in memory only. Its size cannot be changed. Raises OSError."""
    file = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file, size)
        fcntl.fcntl(file, _F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(file)
        raise
    return file


def read_only(file: int) -> int:
    """The same file, for reading only. Raises OSError."""
    return os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)


def slab(file: int, elements: int, dtype: np.dtype[np.floating], *, writable: bool) -> NDArray[np.floating]:
    """The file's content as an array of shape (elements). The array stays valid when the file is closed.

    Raises SharingError if the file has another size, or one that could change: then reading could end the process. Raises OSError
    if the process may not map it.
    """
    size = elements * dtype.itemsize
    try:
        sealed = fcntl.fcntl(file, _F_GET_SEALS) & _SEALS == _SEALS
        actual = os.fstat(file).st_size
    except OSError as error:
        raise SharingError(f"not a file in memory: {error.strerror}") from error
    if not sealed or actual != size:
        raise SharingError(f"a file of {actual} bytes{'' if sealed else ', not sealed'}, not one of {size}")
    if size == 0:
        return np.empty(0, dtype)
    content = mapped(file, size, mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
    array = np.frombuffer(memoryview(content), dtype)
    array.flags.writeable = writable
    return array


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc


def mapped(file: int, size: int, access: int) -> "ctypes.Array[ctypes.c_char]":
    """A file's bytes, mapped as long as they are referenced. Raises OSError.

    `mmap.mmap` would keep a second descriptor of the file open; there may be hundreds of such files.
    """
    libc = _libc()
    address = libc.mmap(None, size, access, mmap.MAP_SHARED, file, 0)
    if address == ctypes.c_void_p(-1).value:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    content = (ctypes.c_char * size).from_address(address)
    weakref.finalize(content, libc.munmap, address, size).atexit = False
    return content


def listen() -> tuple[socket.socket, str]:
    """A socket at which processes can ask for memory, and its name. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    name = f"{_NAME}-{secrets.token_hex(16)}"
    listener.bind(f"\0{name}")
    listener.listen(128)
    return listener, name


def connect(name: str, token: bytes, seconds: float) -> socket.socket:
    """A connection to the listener at a name, after it has accepted the token. Raises SharingError if that takes too long."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        peer.settimeout(seconds)
        peer.connect(f"\0{name}")
        if user_of(peer) != os.geteuid():
            raise SharingError("the server runs as another user")
        peer.send(token)
        if peer.recv(len(OK)) != OK:
            raise SharingError("the server refused")
    except OSError as error:
        peer.close()
        raise SharingError(f"cannot connect to the server's socket: {error}") from error
    except SharingError:
        peer.close()
        raise
    return peer


def user_of(peer: socket.socket) -> int:
    """The user id of the process at the other end, as it was when it connected or listened."""
    _, user, _ = struct.unpack("iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(user)


def give(peer: socket.socket, *files: int) -> None:
    """Sends files. Raises OSError."""
    socket.send_fds(peer, [OK], list(files))


def take(peer: socket.socket, most: int) -> tuple[bytes, list[int]]:
    """The next message and the files with it, at most `files`; both empty if the other side is gone. Raises OSError.

    A message that is too long is cut to `MAX_BYTES`.
    """
    data, files, _, _ = socket.recv_fds(peer, MAX_BYTES, most)
    for file in files:
        os.set_inheritable(file, False)
    return data, files
