"""Full-batch training of a PyTorch module with our optimizers equals a usual loop with `torch.optim`."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from tests.learning.batches import schema_of
from tests.learning.kinds.cases import samples
from thalweg.contract.layout import Slab, layout_of, views
from thalweg.learning import optimizers, registry, schedules
from thalweg.server import validation
from thalweg.v1 import job_pb2

torch = pytest.importorskip("torch")
from torch.nn import functional  # noqa: E402 - an extra

from tests.data.make_torch_reference import CASES, SCHEDULERS, STEPS, STEPS_PER_EPOCH  # noqa: E402 - imports torch
from tests.learning.kinds.torch_model import smooth  # noqa: E402 - imports torch
from thalweg.learning.pytorch.settings import settled  # noqa: E402 - imports torch

TAKEN = 100
# Patterns of names, the factor of the learning rate, and the weight decay; the last one has the rest of the tensors.
GROUPS: list[tuple[str, float, float]] = [("*.bias", 1.0, 0.0), ("0.*", 0.1, 0.05), ("*", 1.0, 0.2)]
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
# The gradients of a full batch hardly change: in single precision their variance, a difference of equal numbers, is rounding.
DOUBLE = {"rmsprop, centered"}
RUNS = [(case, dtype) for case in CASES for dtype in TOLERANCE if dtype == "float64" or case not in DOUBLE]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in workers."""
    with settled(1):
        yield


def spec_of(optimizer: dict[str, Any], dtype: str) -> job_pb2.JobSpec:
    model = {"torch": {"entrypoint": "tests.learning.kinds.torch_model:smooth"}, "loss": "softmax_cross_entropy", "dtype": dtype}
    document = {"model": model, "data": {"builtin": "digits"}, "optimizer": optimizer}
    return validation.complete(json_format.ParseDict(document, job_pb2.JobSpec()))


def ours(spec: job_pb2.JobSpec) -> tuple[dict[str, Slab], dict[str, Slab]]:
    """The parameters before and after the steps, by name."""
    batch = samples(40, spec.model.dtype)
    objective = registry.objective(spec, schema_of(batch))
    parameters, gradient = np.empty((2, objective.size), objective.dtype)
    objective.initialize(parameters)
    layout, whole = layout_of(objective.segments, objective.dtype), slice(0, objective.size)
    before = {name: view.copy() for name, view in views(layout, parameters).items()}
    optimizer, spans = optimizers.make(spec.optimizer), optimizers.spans(spec.optimizer, objective.segments, objective.size)
    state, reductions = optimizer.init(objective.size, objective.dtype), optimizers.reductions(spec.optimizer)
    for step in range(TAKEN):
        objective.gradient(parameters, batch, 40, (step, 0), gradient)
        scaled = optimizers.reduced(optimizer, reductions, parameters, gradient, state, step, spans).within(whole)
        rate = optimizer.learning_rate * schedules.factor(spec.optimizer.schedule, step, STEPS_PER_EPOCH, STEPS)
        optimizers.apply(optimizer, parameters, gradient, state, parameters, rate, step, spans=scaled)
    return before, views(layout, parameters)


def theirs(case: str, dtype: str, before: dict[str, Slab], groups: Sequence[tuple[str, float, float]] = ()) -> dict[str, Slab]:
    """The parameters after the steps of a usual loop."""
    batch = {name: torch.from_numpy(values) for name, values in samples(40, dtype).items()}
    net = smooth().to(getattr(torch, dtype))
    net.load_state_dict({name: torch.from_numpy(values) for name, values in before.items()})
    named = dict(net.named_parameters())
    optimizer = CASES[case][1](net.parameters())
    if groups:
        biases = [name for name in named if name.endswith(".bias")]
        first = [name for name in named if name.startswith("0.") and name not in biases]
        rest = [name for name in named if name not in biases + first]
        optimizer = CASES[case][1]([{"params": [named[name] for name in names]} for names in (biases, first, rest)])
        for group, (_, factor, decay) in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] *= factor
            group["weight_decay"] = decay
    scheduler = SCHEDULERS[case](optimizer) if case in SCHEDULERS else None
    for _ in range(TAKEN):
        optimizer.zero_grad()
        functional.cross_entropy(net(batch["x"]), batch["y"]).backward()
        if "clip_global_norm" in CASES[case][0]:
            torch.nn.utils.clip_grad_norm_(net.parameters(), CASES[case][0]["clip_global_norm"])
        optimizer.step()
        if scheduler:
            scheduler.step()
    return {name: parameter.detach().numpy() for name, parameter in named.items()}


def compare(found: dict[str, Slab], expected: dict[str, Slab], before: dict[str, Slab], dtype: str) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], err_msg=name)
        # All tensors have moved, by far more than the tolerance.
        assert np.abs(values - before[name]).max() > 1e-3, name


@pytest.mark.parametrize(("case", "dtype"), RUNS)
def test_every_optimizer_equals_pytorchs(case: str, dtype: str) -> None:
    before, found = ours(spec_of(CASES[case][0], dtype))
    compare(found, theirs(case, dtype, before), before, dtype)


# PyTorch's schedulers have bounds that groups do not scale.
@pytest.mark.parametrize(("case", "dtype"), [run for run in RUNS if run[0] not in SCHEDULERS])
def test_groups_equal_pytorchs(case: str, dtype: str) -> None:
    groups = [{"pattern": name, "learning_rate_factor": factor, "weight_decay": decay} for name, factor, decay in GROUPS]
    before, found = ours(spec_of({**CASES[case][0], "groups": groups}, dtype))
    compare(found, theirs(case, dtype, before, GROUPS), before, dtype)


def test_every_optimizer_that_pytorch_has_is_here() -> None:
    kinds = {kind for spec, _ in CASES.values() for kind in spec}
    assert kinds >= set(optimizers.OPTIMIZERS) - {"lamb"}
