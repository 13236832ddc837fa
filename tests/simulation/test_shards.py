"""Jobs that are split over shards end with the bits of those that are not, and bugs of shards that are planted are found."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.simulation import schedules
from tests.simulation.cluster import Cluster
from tests.simulation.faults import SHARD_KINDS, Faults
from tests.simulation.worker import noise
from thalweg.learning.optimizers import OptimizerState
from thalweg.server.arrays.parameters import Parameters
from thalweg.server.arrays.pieces import Pieces
from thalweg.server.arrays.sharded.arrays import ShardedArrays
from thalweg.server.arrays.sharded.assembly import Assembly
from thalweg.server.arrays.sharded.in_order import InOrder
from thalweg.server.deciding.events import Event
from thalweg.server.sharding.host import ShardHost
from thalweg.v1 import shard_service_pb2


def _run(
    name: str, seed: int, *kinds: str, shards: int = 3, most: int = 8, seconds: float = 0.05, checkpoint_seconds: float = 0.02
) -> Cluster:
    """A job's run with some faults of shards. Its bits are those of the run without shards and faults."""
    faults = Faults(dict.fromkeys(kinds, 1.0), most=most, seconds=seconds, latency=0.002)
    cluster = Cluster(
        schedules.spec_of(name),
        seed,
        noise,
        faults=faults,
        workers=3,
        shards=shards,
        validation_samples=30,
        checkpoint_seconds=checkpoint_seconds,
    )
    found = cluster.run().tobytes()
    assert found == schedules.undisturbed(name, 30)[0], "other parameters than those of the run without shards"
    return cluster


@pytest.mark.parametrize("name", ["bulk", "bulk, clipped", "bulk, lamb", "bulk, bfloat16", "local", "stale, bound 0"])
@pytest.mark.parametrize("shards", [2, 3, 4])
def test_shards_change_no_bit(name: str, shards: int) -> None:
    assert _run(name, 1, shards=shards).split == 1


def test_lost_shards_change_no_bit() -> None:
    clusters = [_run("bulk, lamb", seed, *SHARD_KINDS) for seed in range(40)]
    assert any(cluster.returned > 1 for cluster in clusters)
    assert any(cluster.interrupted for cluster in clusters), "no copy was interrupted"
    assert any(cluster.split < cluster.returned + 1 for cluster in clusters), "no run went on without shards"


def test_a_connection_of_a_worker_to_a_shard_that_breaks_costs_that_worker_alone() -> None:
    clusters = [_run("bulk", seed, "cut_guest") for seed in range(20)]
    assert any(cluster.counts.lost_workers for cluster in clusters)
    assert not any(cluster.returned for cluster in clusters)


def test_chunks_of_which_the_last_came_alone_are_counted_when_their_worker_is_lost() -> None:
    """The run compares what came with what is accounted for; what waited for other chunks was not."""
    waited = 0
    leave = InOrder.leave

    def note(self: InOrder, worker: int) -> list[Event]:
        nonlocal waited
        held_back = leave(self, worker)
        waited += len(held_back)
        return held_back

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InOrder, "leave", note)
        for seed in range(40):
            _run("bulk", seed, "kill", "cut_guest")
    assert waited


def _applied_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that has come back applies each update twice."""
    clear, do, apply = ShardHost.clear, ShardHost.do, Parameters.apply
    back = False

    def come_back(self: ShardHost) -> None:
        clear(self)
        self.has_come_back = True  # type: ignore[attr-defined]

    def note(self: ShardHost, command: shard_service_pb2.ShareCommand) -> None:
        nonlocal back
        back = hasattr(self, "has_come_back")
        do(self, command)
        back = False

    def twice(self: Parameters, version: int, step: int, chunks: range, factor: float) -> bool:
        terms = dict(self._gradients[step])
        finite = apply(self, version, step, chunks, factor)
        if back:
            self._gradients[step] |= {key: each for key, each in terms.items() if key[1] in chunks}
            finite = apply(self, version, step, chunks, factor)
        return finite

    monkeypatch.setattr(ShardHost, "clear", come_back)
    monkeypatch.setattr(ShardHost, "do", note)
    monkeypatch.setattr(Parameters, "apply", twice)


def _reported_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard reports an update, and makes it when the version is promoted."""
    do = ShardHost.do
    put_off: dict[int, list[shard_service_pb2.ShareCommand]] = {}

    def late(self: ShardHost, command: shard_service_pb2.ShareCommand) -> None:
        waiting = put_off.setdefault(id(self) ^ command.share, [])
        if command.HasField("apply"):
            applied = shard_service_pb2.Applied(version=command.apply.version, finite=True)
            self._say(shard_service_pb2.HoldRequest(share=command.share, applied=applied))
            waiting.append(command)
            return
        if command.HasField("promote"):
            say, self._say = self._say, lambda _: None
            for each in waiting:
                do(self, each)
            waiting.clear()
            self._say = say
        do(self, command)

    monkeypatch.setattr(ShardHost, "do", late)


def _nobody_waits_for_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version is promoted, and a norm used, before shards have answered."""
    monkeypatch.setattr(ShardedArrays, "ready", lambda *_: True)


def _the_last_chunk_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker counts as free before all chunks of its gradient have come."""
    monkeypatch.setattr(InOrder, "__call__", lambda _, event: [event])


def _what_waits_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody counts a chunk that waits for others that never come."""
    monkeypatch.setattr(ShardedArrays, "_let_go", lambda *_: None)


def _pieces_copied_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard's update changes what it has yet to copy."""
    monkeypatch.setattr(Pieces, "before_update", lambda *_: None)


def _half_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that a lost shard interrupts is taken for whole."""

    def finish(self: Assembly) -> None:
        for copy in self._copies.values():
            copy.then(copy.slabs)
        self._copies.clear()

    monkeypatch.setattr(Assembly, "clear", finish)


def _half_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards get the parameters of a checkpoint, and not the optimizer's state."""
    restore = ShardedArrays._restore

    def part(self: ShardedArrays, version: int, parameters: Any, state: OptimizerState | None) -> None:
        restore(self, version, parameters, None)
        own = slice(-self.parameters.current.size, None)
        own_state = None if state is None else {name: slab[own] for name, slab in state.items()}
        super(ShardedArrays, self)._restore(version, parameters[own], own_state)

    monkeypatch.setattr(ShardedArrays, "_restore", part)


def _lost_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on though it has lost a shard."""
    monkeypatch.setattr(ShardedArrays, "needs", lambda *_: False)


def _sums_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of a norm are added in another order than that of the slab."""
    factors = Parameters.factors

    def unordered(self: Parameters, reduction: int, sums: Iterable[float]) -> list[float]:
        return factors(self, reduction, sorted(sums))

    monkeypatch.setattr(Parameters, "factors", unordered)


@pytest.mark.parametrize(
    "plant",
    [
        _applied_again,
        _reported_too_early,
        _nobody_waits_for_answers,
        _the_last_chunk_does_not_wait,
        _what_waits_is_forgotten,
        _half_a_load,
        _lost_without_a_word,
        _sums_in_another_order,
    ],
)
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    schedules.run_undisturbed()
    plant(monkeypatch)
    assert schedules.broken(lambda cluster: cluster.first_shards), "the bug went unnoticed"


@pytest.mark.parametrize("plant", [_pieces_copied_too_late, _half_a_copy])
def test_a_planted_bug_of_copies_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong in a checkpoint shows if it is read, which is seldom: here many are written, interrupted and read."""

    def run(seeds: range) -> None:
        for seed in seeds:
            _run("bulk", seed, "kill_shard", "add_shard", "stop_shard", most=25, seconds=0.1, checkpoint_seconds=0.0)

    run(range(20))
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="other parameters"):
        run(range(100))
