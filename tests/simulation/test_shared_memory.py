"""Jobs whose workers share memory with the server end with the bits of those whose workers do not, and planted bugs are found."""

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.simulation import schedules
from tests.simulation.cluster import Cluster
from tests.simulation.faults import MEMORY_KINDS, Faults
from tests.simulation.worker import ImaginaryWorker, SharedTask, noise
from thalweg.contract import shared_memory
from thalweg.contract.layout import Slab
from thalweg.server.streams.job_sharing import JobSharing
from thalweg.server.streams.memory_peers import MemoryPeer, SharedSlabs
from thalweg.workers.transport.exchange import Shared

_FILES = Path("/proc/self/fd")


def _run(name: str, seed: int, kinds: Collection[str] = (), near: float = 1.0) -> Cluster:
    """A job's run with some faults. Its bits are those of the run whose worker gets messages, without faults."""
    faults = Faults(dict.fromkeys(kinds, 1.0), most=8, seconds=0.05, latency=0.002)
    spec = schedules.spec_of(name)
    cluster = Cluster(spec, seed, noise, faults=faults, workers=3, near=near, validation_samples=30, checkpoint_seconds=0.02)
    found = cluster.run().tobytes()
    assert found == schedules.undisturbed(name, 30)[0], "other parameters than those of the run without shared memory"
    return cluster


@pytest.mark.parametrize("name", ["bulk", "bulk, clipped", "bulk, lamb", "bulk, numerical", "local"])
@pytest.mark.parametrize("near", [0.5, 1.0])
def test_shared_memory_changes_no_bit(name: str, near: float) -> None:
    clusters = [_run(name, seed, near=near) for seed in range(3)]
    assert any(cluster.attached for cluster in clusters)


@pytest.mark.parametrize("name", ["bulk, bfloat16", "stale, bound 0"])
def test_where_a_codec_rounds_or_buffers_may_be_overwritten_nobody_shares(name: str) -> None:
    assert not _run(name, 1).attached


@pytest.mark.parametrize("name", ["bulk", "local"])
def test_workers_that_die_while_they_write_change_no_bit(name: str) -> None:
    clusters = [_run(name, seed, ["kill", "stop", "stall", "crash"]) for seed in range(20)]
    assert all(cluster.attached for cluster in clusters)
    assert any(cluster.counts.lost_workers for cluster in clusters)


def test_workers_that_attach_half_and_memory_that_is_scarce_change_no_bit() -> None:
    clusters = [_run("bulk", seed, [*MEMORY_KINDS, "kill"]) for seed in range(40)]
    assert any(cluster.attached > 0 for cluster in clusters)


def test_a_worker_that_dies_after_it_has_attached_is_no_liar() -> None:
    """Its socket and its stream end each at its time: what it says on one may be read after the end of the other."""
    gone = 0
    settle = JobSharing.settle

    def note(self: JobSharing, worker: int, took: bool) -> bool:
        nonlocal gone
        guest = self._guests.get(worker)
        gone += took and guest is not None and not guest.attached
        return settle(self, worker, took)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobSharing, "settle", note)
        for seed in range(60):
            _run("bulk", seed, ["attach_half"])
    assert gone


def test_a_run_leaves_no_files_open() -> None:
    before = set(_FILES.iterdir())
    for seed in range(5):
        _run("bulk", seed, ["kill", "crash", *MEMORY_KINDS])
    assert len(set(_FILES.iterdir())) == len(before)


def _told_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server reads a gradient that the worker is still writing."""
    write = ImaginaryWorker._write

    def late(self: ImaginaryWorker, shared: SharedTask, chunks: range) -> None:
        self._cluster.at(0.003, lambda: write(self, shared, chunks))

    monkeypatch.setattr(ImaginaryWorker, "_write", late)


def _used_again_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker writes the next gradient where the server has yet to read the one before."""
    slab = Shared.slab

    def same(self: Shared, version: int) -> Slab:
        self._used = 0
        return slab(self, version)

    monkeypatch.setattr(Shared, "slab", same)


def _one_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server writes the next version where workers still read the current one."""
    init, slab = SharedSlabs.__init__, SharedSlabs._slab

    def single(self: SharedSlabs, elements: int, dtype: Any) -> None:
        def same(self: SharedSlabs, elements: int, dtype: Any) -> Slab:
            if not self._files:
                return slab(self, elements, dtype)
            self._files.append(os.dup(self._files[0]))
            return shared_memory.slab(self._files[0], elements, dtype, writable=True)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SharedSlabs, "_slab", same)
            init(self, elements, dtype)

    monkeypatch.setattr(SharedSlabs, "__init__", single)


def _gone_are_liars(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has attached and died is taken for one that lies."""
    settle = JobSharing.settle

    def strict(self: JobSharing, worker: int, took: bool) -> bool:
        guest = self._guests.get(worker)
        return settle(self, worker, took) and not (took and guest is not None and not guest.attached)

    monkeypatch.setattr(JobSharing, "settle", strict)


def _withdrawn_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that have attached are not told that nothing is shared after all."""
    monkeypatch.setattr(JobSharing, "withdraw", lambda *_: None)


def _lost_in_a_full_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker's socket has no room for is not said."""
    sent = MemoryPeer._sent

    def forgetful(self: MemoryPeer, peer: Any, data: bytes) -> bool:
        sent(self, peer, data)
        return True

    monkeypatch.setattr(MemoryPeer, "_sent", forgetful)


def _another_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server reads the first of a worker's slots, whichever is meant."""
    slab = MemoryPeer.slab
    monkeypatch.setattr(MemoryPeer, "slab", lambda self, _, elements, dtype: slab(self, 0, elements, dtype))


def _freed_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker has told of a gradient is gone with it."""
    end = ImaginaryWorker.end

    def free(self: ImaginaryWorker) -> None:
        for slab in self._exchange._slabs if self._exchange else ():
            slab[:] = np.nan
        end(self)

    monkeypatch.setattr(ImaginaryWorker, "end", free)


@pytest.mark.parametrize(
    "plant",
    [
        _told_before_it_is_written,
        _used_again_too_early,
        _one_buffer,
        _gone_are_liars,
        _withdrawn_in_silence,
        _lost_in_a_full_socket,
        _another_slot,
        _freed_too_early,
    ],
)
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    schedules.run_undisturbed()
    plant(monkeypatch)
    assert schedules.broken(lambda cluster: cluster.near and not cluster.first_shards), "the bug went unnoticed"
