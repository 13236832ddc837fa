"""Checkpoints: whole or not there, on a real disk."""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from thalweg.server.deciding.values import Position
from thalweg.server.settings import KEPT_CHECKPOINTS
from thalweg.server.storage import checkpoints as module
from thalweg.server.storage.checkpoints import (
    FORMAT,
    Checkpoint,
    CheckpointError,
    Checkpoints,
    NewerCheckpointError,
    decode,
    encode,
)
from thalweg.server.storage.disk import RealDisk
from thalweg.v1 import job_pb2
from thalweg.v1 import parameter_service_pb2 as pb

LAYOUT = job_pb2.Layout(tensors=[job_pb2.Tensor(name="a", shape=[3])], dtype="float32")


def make(version: int, trajectory: bool = True) -> Checkpoint:
    return Checkpoint(
        position=Position(version, 1 / 3, 17, (version + 1, version + 3)),
        prepared=pb.Prepared(layout=LAYOUT, train_samples=4, preprocessing=job_pb2.Preprocessing(mean=[0.1])),
        parameters=np.array([1, 2, version], np.float32),
        state={"mean": np.array([3, 4, 5], np.float32), "square": np.array([6, 7, 8], np.float32)},
        versions=(0, version) if trajectory else (),
        trajectory=(np.ones(3, np.float32), np.zeros(3, np.float32)) if trajectory else (),
        samples=123,
        seconds=4.5,
        machines=((("BLAS", "openblas 0.3"), ("NumPy", "2.4.6")), ()),
    )


def same(left: Checkpoint | None, right: Checkpoint) -> bool:
    return left is not None and encoded(left) == encoded(right)


def encoded(checkpoint: Checkpoint) -> bytes:
    return b"".join(encode(checkpoint))


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "jobs" / "a" / "checkpoints", RealDisk())


@pytest.mark.parametrize("trajectory", [True, False])
def test_a_checkpoint_is_read_as_it_was_written(checkpoints: Checkpoints, trajectory: bool) -> None:
    assert checkpoints.latest() == (None, [])
    written = make(7, trajectory)
    assert checkpoints.write(written) == len(encoded(written))
    read, problems = checkpoints.latest()
    assert read
    assert not problems
    assert (read.position, read.prepared, read.versions) == (written.position, written.prepared, written.versions)
    assert (read.samples, read.seconds) == (123, 4.5)
    assert same(read, written)


def test_the_last_ones_are_kept(checkpoints: Checkpoints) -> None:
    for version in (1, 2, 9, 10, 11):
        checkpoints.write(make(version))
    kept = sorted(path.name[:12] for path in checkpoints.folder.iterdir())
    assert kept == [f"{version:012d}" for version in (10, 11)]
    assert len(kept) == KEPT_CHECKPOINTS
    checkpoints.remove()
    assert list(checkpoints.folder.iterdir()) == []


def flip(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize(
    "damage", [flip, lambda data: data[:-1], lambda data: data + b"x", lambda _: b"", lambda data: bytes(len(data))]
)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(
    checkpoints: Checkpoints, damage: Callable[[bytes], bytes]
) -> None:
    checkpoints.write(make(5))
    checkpoints.write(make(1234))
    newest = max(checkpoints.folder.iterdir())
    newest.write_bytes(damage(newest.read_bytes()))
    read, problems = checkpoints.latest()
    assert same(read, make(5))
    (problem,) = problems
    assert problem.startswith("the checkpoint of step 1,234 cannot be used: it is damaged")


def test_a_checkpoint_that_does_not_know_its_machines_is_read() -> None:
    data = encoded(make(5))
    assert decode(memoryview(data)).machines == make(5).machines
    older = data.replace(b"machines", b"nothings")
    assert older != data
    assert decode(memoryview(older)).machines == ()


def test_what_is_no_checkpoint_is_told_from_one() -> None:
    good = encoded(make(1))
    for data in (b"", b"x" * 100, good[:40], good[:-1], good.replace(b"position", b"petition"), good.replace(b"F32", b"I32")):
        with pytest.raises(CheckpointError):
            decode(memoryview(data))


def test_the_checkpoint_of_a_newer_release_is_refused_and_so_are_those_before_it(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.write(make(5))
    with monkeypatch.context() as newer:
        newer.setattr(module, "FORMAT", FORMAT + 1)
        newer.setattr(module, "version", lambda _: "9.8.7")
        checkpoints.write(make(6))
    theirs, ours = rf"release 9\.8\.7 wrote it in format {FORMAT + 1}", rf"release 0\.\d.*, which reads formats up to {FORMAT}"
    with pytest.raises(NewerCheckpointError, match=f"step 6 .* {theirs}; this is {ours}"):
        checkpoints.latest()
    assert len(list(checkpoints.folder.iterdir())) == 2, "nothing is removed: that release can still go on"


def test_other_files_are_left_alone(checkpoints: Checkpoints) -> None:
    checkpoints.write(make(5))
    (checkpoints.folder / "notes.txt").write_text("mine")
    assert same(checkpoints.latest()[0], make(5))
    checkpoints.remove()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["notes.txt"]


class FullDisk(RealDisk):
    """Takes half of a file."""

    def write(self, path: Path, pieces: Iterable[bytes | memoryview]) -> None:
        super().write(path, itertools.islice(pieces, 2))
        raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_checkpoint_before_and_nothing_else(checkpoints: Checkpoints) -> None:
    checkpoints.write(make(5))
    with pytest.raises(OSError, match="No space"):
        Checkpoints(checkpoints.folder, FullDisk()).write(make(6))
    assert len(list(checkpoints.folder.iterdir())) == 1
    assert same(checkpoints.latest()[0], make(5))


PEAK = """
import sys
from pathlib import Path
import numpy as np
from tests.server.test_checkpoints import make
from thalweg.server.storage.checkpoints import Checkpoint, Checkpoints
from thalweg.server.storage.disk import RealDisk

def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def anonymous():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("RssAnon"))

small, slab = make(7), np.ones(40 << 18, np.float32)
checkpoint = Checkpoint(small.position, small.prepared, slab, {"a": slab + 1, "b": slab + 2}, (0, 7), (slab, slab), 1, 1.0)
checkpoints = Checkpoints(Path(sys.argv[1]), RealDisk())
before = peak()
checkpoints.write(checkpoint)
written = peak() - before
del checkpoint, slab
before = anonymous()
found, _ = checkpoints.latest()
assert found.state["b"][-1] == 3
print(written, anonymous() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the memory that a process had")
def test_neither_writing_nor_reading_takes_memory_for_the_whole(tmp_path: Path) -> None:
    # Five slabs of 40 MiB.
    written, read = map(int, subprocess.check_output([sys.executable, "-c", PEAK, str(tmp_path)], text=True).split())
    assert written < 8 << 20
    assert read < 8 << 20
