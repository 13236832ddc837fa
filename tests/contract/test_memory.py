"""Memory that is shared: handed over, sealed, and refused where it is not what it should be."""

import os
import socket

import numpy as np
import pytest

from thalweg.contract import shared_memory

pytestmark = pytest.mark.skipif(not shared_memory.AVAILABLE, reason="memory is shared on Linux only")
FLOAT = np.dtype("<f4")


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_what_one_side_writes_the_other_reads(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    file = shared_memory.create(12)
    written = shared_memory.slab(file, 3, FLOAT, writable=True)
    assert written.tolist() == [0, 0, 0]
    shared_memory.give(ours, shared_memory.read_only(file))
    data, (taken,) = shared_memory.take(theirs, 1)
    assert data == shared_memory.OK
    read = shared_memory.slab(taken, 3, FLOAT, writable=False)
    os.close(file)
    os.close(taken)
    written[:] = [1, 2, 3]
    assert read.tolist() == [1, 2, 3]
    assert not read.flags.writeable


def test_whoever_may_read_cannot_write(pair: tuple[socket.socket, socket.socket]) -> None:
    file = shared_memory.read_only(shared_memory.create(12))
    with pytest.raises(PermissionError):
        shared_memory.slab(file, 3, FLOAT, writable=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(file, b"1")


def test_nobody_can_take_away_what_is_being_read() -> None:
    file = shared_memory.create(12)
    for size in (0, 4, 1000):
        with pytest.raises(PermissionError):
            os.ftruncate(file, size)


@pytest.mark.parametrize("size", [0, 8, 16, 4096])
def test_a_file_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(shared_memory.SharingError, match=f"a file of {size} bytes, not one of 12"):
        shared_memory.slab(shared_memory.create(size), 3, FLOAT, writable=False)


def test_a_file_that_could_shrink_is_refused() -> None:
    file = os.memfd_create("any", os.MFD_ALLOW_SEALING)
    os.ftruncate(file, 12)
    with pytest.raises(shared_memory.SharingError, match="not sealed"):
        shared_memory.slab(file, 3, FLOAT, writable=False)


def test_what_is_no_file_in_memory_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(shared_memory.SharingError, match="not a file in memory"):
        shared_memory.slab(pair[0].fileno(), 3, FLOAT, writable=False)


def test_an_empty_slab_needs_no_memory() -> None:
    assert shared_memory.slab(shared_memory.create(0), 0, FLOAT, writable=False).size == 0


def test_nobody_listens_at_a_name_that_nobody_has() -> None:
    with pytest.raises(shared_memory.SharingError, match="cannot connect"):
        shared_memory.connect("thalweg-nobody", b"token", 1.0)


def test_a_token_that_is_not_taken_is_an_error() -> None:
    listener, name = shared_memory.listen()
    with listener, pytest.raises(shared_memory.SharingError, match="cannot connect to the server's socket: timed out"):
        shared_memory.connect(name, b"token", 0.01)
