"""Schedules of faults, each drawn from a seed, and what the guarantees say of every one of them."""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

from google.protobuf import json_format

from tests.simulation.cluster import Cluster, epochs, losses
from tests.simulation.faults import KINDS, MEMORY_KINDS, SHARD_KINDS, Faults
from tests.simulation.worker import Leaf, ledger, noise
from thalweg.server import validation
from thalweg.v1 import job_pb2

_MOMENTUM = {"momentum": {"learning_rate": 0.1}}
_EXACT = {"sgd": {"learning_rate": 1.0}}

# The jobs that faults are tried on: `exact` says that the result must be the undisturbed run's, bit for bit; the gradients of the
# others are whole numbers, so that their sum tells whether each was applied once.
JOBS: dict[str, dict[str, Any]] = {
    "bulk": {"training": {"microbatches": 5, "batch_size": 6, "epochs": 2}, "optimizer": _MOMENTUM},
    "bulk, lamb": {
        "training": {"microbatches": 3, "batch_size": 5, "epochs": 2},
        "optimizer": {"lamb": {}, "clip_global_norm": 0.5, "groups": [{"pattern": "*.bias", "weight_decay": 0}]},
    },
    "bulk, one microbatch": {"training": {"microbatches": 1, "batch_size": 4, "epochs": 2}, "optimizer": _MOMENTUM},
    "bulk, clipped": {
        "training": {"microbatches": 4, "batch_size": 6, "epochs": 2},
        "optimizer": {**_MOMENTUM, "clip_global_norm": 0.5, "schedule": {"cosine": {}}},
    },
    "bulk, numerical": {
        "training": {"microbatches": 2, "batch_size": 8, "epochs": 2, "gradient": "numerical", "workers": 3},
        "optimizer": _MOMENTUM,
    },
    "bulk, bfloat16": {
        "training": {"microbatches": 5, "batch_size": 6, "epochs": 2, "codec": {"bfloat16": {}}},
        "optimizer": _MOMENTUM,
    },
    "bulk, int8": {
        "training": {"microbatches": 3, "batch_size": 6, "epochs": 2, "codec": {"int8": {"block": 8}}},
        "optimizer": _MOMENTUM,
    },
    "local, top_k": {
        "training": {
            "microbatches": 4,
            "batch_size": 3,
            "epochs": 4,
            "synchrony": {"local": {"steps": 4}},
            "codec": {"top_k": {"fraction": 0.5}},
        },
        "optimizer": {"sgd": {}},
    },
    "local": {
        "training": {"microbatches": 4, "batch_size": 3, "epochs": 4, "synchrony": {"local": {"steps": 4}}},
        "optimizer": {"sgd": {}},
    },
    "stale": {
        "training": {"microbatches": 4, "batch_size": 3, "epochs": 2, "synchrony": {"stale": {"bound": 2}}},
        "optimizer": _EXACT,
    },
    "stale, bound 0": {
        "training": {"microbatches": 3, "batch_size": 4, "epochs": 2, "synchrony": {"stale": {"bound": 0}}},
        "optimizer": _MOMENTUM,
    },
    "asynchronous": {
        "training": {"microbatches": 2, "batch_size": 2, "epochs": 2, "synchrony": {"asynchronous": {}}},
        "optimizer": _EXACT,
    },
}


_VALIDATION_SAMPLES = (0, 30, 3000)
# What is wrong is found by the first dozens, as a rule.
_MAX_SEEDS = 600


def spec_of(name: str) -> job_pb2.JobSpec:
    """A job of the list, complete."""
    job = {"model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"}, "data": {"builtin": "xor"}, **JOBS[name]}
    return validation.complete(json_format.ParseDict(job, job_pb2.JobSpec()))


def is_exact(spec: job_pb2.JobSpec) -> bool:
    """Whether the job's result is a property of the job alone."""
    synchrony = spec.training.synchrony
    return synchrony.WhichOneof("policy") in ("bulk", "local") or (synchrony.HasField("stale") and not synchrony.stale.bound)


def _leaf(spec: job_pb2.JobSpec) -> Leaf:
    return noise if is_exact(spec) else ledger


@cache
def undisturbed(name: str, validation_samples: int) -> tuple[bytes, list[float], list[Any]]:
    """Parameters, losses and epochs of a run with one worker and no faults."""
    spec = spec_of(name)
    cluster = Cluster(spec, 0, _leaf(spec), validation_samples=validation_samples, checkpoint_seconds=1e9)
    parameters = cluster.run().tobytes()
    return parameters, losses(cluster.journal.durable), epochs(cluster.journal.durable)


def run_undisturbed() -> None:
    """Runs every job without faults, before a bug is planted."""
    for name in JOBS:
        for validation_samples in _VALIDATION_SAMPLES:
            undisturbed(name, validation_samples)


def disturbed(seed: int) -> tuple[str, int, Cluster]:
    """The cluster that a seed stands for, before it runs; its job, and the number of validation samples."""
    drawn = random.Random(seed)
    name, validation_samples = drawn.choice(list(JOBS)), drawn.choice(_VALIDATION_SAMPLES)
    shards = drawn.choice([0, 0, 2, 3, 4])
    near = drawn.choice([0.0, 0.0, 0.5, 1.0])
    possible = list(KINDS) + list(SHARD_KINDS if shards else ()) + list(MEMORY_KINDS if near else ())
    kinds = {kind: drawn.random() for kind in drawn.sample(possible, drawn.randint(1, len(possible)))}
    seconds, latency = drawn.choice([0.01, 0.03, 0.1]), drawn.choice([0.001, 0.001, 0.02])
    faults = Faults(kinds, drawn.randint(1, 25), seconds, latency, drawn.choice([0.0, 0.1, 0.5]))
    spec = spec_of(name)
    cluster = Cluster(
        spec,
        seed,
        _leaf(spec),
        faults=faults,
        workers=drawn.randint(1, 5),
        shards=shards,
        near=near,
        validation_samples=validation_samples,
        checkpoint_seconds=drawn.choice([0.0, 0.05, 0.2]),
    )
    return name, validation_samples, cluster


def check(seed: int) -> Cluster:
    """Runs a seed's schedule, and holds it to the guarantees. Raises AssertionError."""
    name, validation_samples, cluster = disturbed(seed)
    expected, expected_losses, expected_epochs = undisturbed(name, validation_samples)
    found = cluster.run().tobytes()
    events = cluster.journal.durable
    exact = is_exact(cluster.spec)
    if cluster.counts.lost_residuals:
        assert cluster.spec.training.codec.WhichOneof("kind") in ("int8", "top_k"), "something was left of what is sent whole"
        expected, exact = found, False
    assert found == expected, "other parameters than those of the undisturbed run"
    assert [event.sequence for event in events] == list(range(1, len(events) + 1)), "events have a gap"
    told, ended = losses(events), epochs(events)
    assert len(told) == len(expected_losses), "steps were not told, or were taken twice"
    if exact:
        assert told == expected_losses, "other losses than those of the undisturbed run"
        assert ended == expected_epochs, "other metrics than those of the undisturbed run"
    kinds = cluster.run_.job.progress.machine_kinds if cluster.run_ else 0
    if cluster.moved:
        assert kinds in (1, 2), f"workers ran on {kinds} kinds of machines"
    else:
        assert kinds == 1, "workers ran on machines of one kind"
    if kinds > 1:
        assert any("bits may differ" in event.notice.text for event in events), "nobody was told of other machines"
    bound = cluster.spec.training.synchrony.stale.bound
    if not cluster.spec.training.synchrony.HasField("asynchronous"):
        assert cluster.counts.greatest_staleness <= bound, "a contribution was staler than its bound"
    return cluster


def broken(suits: Callable[[Cluster], object] = lambda _: True) -> bool:
    """Whether one of many schedules, of those whose cluster suits, breaks a guarantee."""
    for seed in range(_MAX_SEEDS):
        try:
            if suits(disturbed(seed)[2]):
                check(seed)
        except (AssertionError, IndexError, KeyError, ValueError):
            return True
    return False
