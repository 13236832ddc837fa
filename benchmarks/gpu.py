"""PyTorch modules on a GPU: checks of equal bits and of what travels, and the time of a gradient against PyTorch alone.

`python -m benchmarks.gpu --out FOLDER` needs NumPy, PyTorch and the contract's packages only. It prints a table, writes
`gpu.json`, ends with 1 if a check fails, and measures for about `--seconds`. `--device cpu` does the same on the processor, with
small models.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from google.protobuf import json_format
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.modules import Block
from thalweg.contract.layout import Slab
from thalweg.contract.segments import Kind
from thalweg.learning import registry
from thalweg.learning.batch import Batch, Field
from thalweg.learning.objective import Objective
from thalweg.learning.pytorch.settings import settled
from thalweg.v1 import job_pb2

# This module, whatever it was started as: the entry points are here.
_HERE = "benchmarks.gpu"
# Device against processor: sums in another order, in float32.
_TOLERANCE = 1e-3
# The most that each part of the measurement is repeated.
_MAX_ROUNDS = 200


class Convolutional(nn.Module):
    """Convolutions with batch normalization and dropout, for images of 3 channels."""

    def __init__(self, width: int, pixels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for source, target in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(source, target, 3, stride=2, padding=1), nn.BatchNorm2d(target), nn.ReLU()]
        side = pixels // 8
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * width * side * side, 10))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layers(x)
        return outputs


class Gpt(nn.Module):
    """A language model: logits for each position's next token."""

    def __init__(self, width: int, depth: int, heads: int, vocabulary: int, tokens: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("order", torch.arange(tokens), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.last(self.blocks(self.tokens(x) + self.positions(self.order))))
        return logits


def mlp(width: int, depth: int, inputs: int) -> nn.Module:
    """Wide layers: many parameters for little arithmetic."""
    layers: list[nn.Module] = []
    for source in (inputs, *[width] * (depth - 1)):
        layers += [nn.Linear(source, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


class Case(NamedTuple):
    """A model, how it is made, and the shape of a sample: real numbers, or, with a vocabulary, tokens."""

    name: str
    make: str
    arguments: dict[str, int]
    samples: int
    shape: tuple[int, ...]
    vocabulary: int = 0

    def spec(self, *, gpus: float, precision: str = "") -> job_pb2.JobSpec:
        """The job's specification, as far as the objective reads it."""
        entry = {"entrypoint": f"{_HERE}:{self.make}", "arguments": json.dumps(self.arguments)}
        model = {"torch": entry, "loss": "softmax_cross_entropy", "dtype": "float32"}
        model |= {"precision": precision} if precision else {}
        training = {"resources": {"gpus": gpus}, "threads_per_worker": 1}
        return json_format.ParseDict({"model": model, "seed": 5, "training": training}, job_pb2.JobSpec())

    def batch(self, seed: int) -> Batch:
        """Random samples."""
        rng = np.random.default_rng(seed)
        shape = (self.samples, *self.shape)
        if self.vocabulary:
            return {"x": rng.integers(0, self.vocabulary, shape), "y": rng.integers(0, self.vocabulary, shape)}
        return {"x": rng.normal(size=shape).astype(np.float32), "y": rng.integers(0, 10, self.samples)}

    def objective(self, *, gpus: float, precision: str = "") -> Objective:
        """The objective, as a worker makes it."""
        schema = {name: Field(values.dtype, values.shape[1:]) for name, values in self.batch(0).items()}
        return registry.objective(self.spec(gpus=gpus, precision=precision), schema)


def cases(*, small: bool) -> list[Case]:
    """The models that are measured."""
    gpt = {"width": 320, "depth": 7, "heads": 5, "vocabulary": 2048, "tokens": 256}
    if small:
        gpt |= {"width": 64, "depth": 2, "vocabulary": 128, "tokens": 32, "heads": 2}
    tokens, vocabulary, inputs = gpt["tokens"], gpt["vocabulary"], 64 if small else 1024
    return [
        Case("convolutional", "Convolutional", {"width": 8 if small else 64, "pixels": 32}, 8 if small else 256, (3, 32, 32)),
        Case("GPT", "Gpt", gpt, 4 if small else 32, (tokens,), vocabulary),
        Case("wide MLP", "mlp", {"width": 4 * inputs, "depth": 3, "inputs": inputs}, 64, (inputs,)),
    ]


def initial(objective: Objective) -> Slab:
    """The parameters at the start."""
    at: Slab = np.empty(objective.size, np.float32)
    objective.initialize(at)
    return at


def gradient(objective: Objective, at: Slab, batch: Batch, draw: tuple[int, int], done: Callable[[int], object]) -> Slab:
    """A gradient, in memory that held no numbers."""
    out: Slab = np.full(objective.size, np.nan, np.float32)
    objective.gradient(at, batch, 2 * len(batch["x"]), draw, out, done)
    return out


def checked(case: Case, *, gpus: float) -> Iterator[tuple[str, bool, str]]:
    """Checks of a model: what is checked, whether it holds, and what was found."""
    objective, again = case.objective(gpus=gpus), case.objective(gpus=gpus)
    at = initial(objective)
    yield "equal initial parameters", np.array_equal(at, initial(again)), f"{objective.size:,} elements"
    draws = [(0, 0), (0, 1), (3, 2)]
    batches = {draw: case.batch(index) for index, draw in enumerate(draws)}
    progress: dict[tuple[int, int], list[int]] = {draw: [] for draw in draws}
    first = {draw: gradient(objective, at, batches[draw], draw, progress[draw].append) for draw in draws}
    second = {draw: gradient(objective, at, batches[draw], draw, lambda _: None) for draw in reversed(draws)}
    third = {draw: gradient(again, at, batches[draw], draw, lambda _: None) for draw in (draws[1], draws[2], draws[0])}
    same = all(first[draw].tobytes() == second[draw].tobytes() == third[draw].tobytes() for draw in draws)
    yield "equal bits twice, in another order", same, f"{len(draws)} draws"
    yield "no number is left out", all(np.isfinite(each).all() for each in first.values()), ""
    told = progress[draws[-1]]
    yield "progress grows to the end", told == sorted(told) and told[-1] == objective.size, f"{len(told)} reports"
    yield "what is final has arrived", _arrives(objective, at, batches[draws[0]], draws[0], first[draws[0]]), ""
    moved = at * np.float32(0.5)
    where = at.copy()
    gradient(objective, where, batches[(0, 0)], (0, 0), lambda _: None)
    where[...] = moved
    here, there = (gradient(objective, each, batches[(0, 0)], (0, 0), lambda _: None) for each in (where, moved))
    yield "new numbers in the same slab are used", here.tobytes() == there.tobytes() != first[(0, 0)].tobytes(), ""
    statistics_ = [segment.name for segment in objective.segments if segment.kind == Kind.STATISTIC]
    start = sum(segment.size for segment in objective.segments if segment.kind == Kind.PARAMETER)
    if statistics_:
        yield "statistics change", bool(first[(0, 0)][start:].any()), f"{len(statistics_)} buffers"
    yield from _against_processor(case, objective, at, gpus=gpus)
    rounded = case.objective(gpus=gpus, precision="bfloat16")
    twice = [gradient(rounded, at, batches[(0, 0)], (0, 0), lambda _: None) for _ in range(2)]
    yield "bfloat16: equal bits twice", twice[0].tobytes() == twice[1].tobytes(), ""
    # Without dropout, whose random numbers differ with the dtype.
    exact, rough = (each.measure(at, batches[(0, 0)]).loss for each in (objective, rounded))
    yield "bfloat16: a loss near float32's, and not equal", 0 < abs(rough / exact - 1) < 0.05, f"{rough:.6f}, {exact:.6f}"


def _arrives(objective: Objective, at: Slab, batch: Batch, draw: tuple[int, int], expected: Slab) -> bool:
    """Whether the first elements are right whenever they are said to be final."""
    out: Slab = np.full(objective.size, np.nan, np.float32)
    right: list[bool] = []
    seen = 0

    def done(elements: int) -> None:
        nonlocal seen
        right.append(out[seen:elements].tobytes() == expected[seen:elements].tobytes())
        seen = elements

    objective.gradient(at, batch, 2 * len(batch["x"]), draw, out, done)
    return all(right) and seen == objective.size


def _against_processor(case: Case, objective: Objective, at: Slab, *, gpus: float) -> Iterator[tuple[str, bool, str]]:
    """The device's sums and gradients against the processor's, for a few samples, without dropout where that can be."""
    if not gpus:
        return
    processor = case.objective(gpus=0)
    few = {name: values[:8] for name, values in case.batch(9).items()}
    yield "equal initial parameters on the processor", np.array_equal(at, initial(processor)), ""
    found, expected = (each.measure(at, few) for each in (objective, processor))
    near = abs(found.loss - expected.loss) <= _TOLERANCE * abs(expected.loss)
    yield "the processor's loss", near, f"{found.loss:.6f}, {expected.loss:.6f}"
    if "Dropout" in case.make or case.make == "Convolutional":
        # The device draws other random numbers: statistics are before the dropout.
        start = sum(segment.size for segment in objective.segments if segment.kind == Kind.PARAMETER)
    else:
        start = 0
    one, other = (gradient(each, at, few, (0, 0), lambda _: None)[start:] for each in (objective, processor))
    off = _distance(one, other)
    yield f"the processor's {'statistics' if start else 'gradient'}", off < _TOLERANCE, f"relative distance {off:.1e}"


def _distance(one: Slab, other: Slab) -> float:
    exact = other.astype(np.float64)
    return float(np.linalg.norm(one - exact) / (np.linalg.norm(exact) or 1))


def measured(case: Case, place: torch.device, seconds: float, precision: str) -> dict[str, Any]:
    """Milliseconds, medians: of a gradient from slab to slab, of PyTorch alone, and of the way there and back."""
    objective = case.objective(gpus=1 if place.type == "cuda" else 0, precision=precision)
    at, batch = initial(objective), case.batch(0)
    out: Slab = np.empty(objective.size, np.float32)
    net = _plain(case).to(place)
    x, y = (torch.from_numpy(batch[name]).to(place) for name in ("x", "y"))

    def ours() -> None:
        objective.gradient(at, batch, case.samples, (1, 0), out)

    def plain() -> None:
        with torch.autocast(place.type, torch.bfloat16, enabled=bool(precision)):
            outputs = net(x)
        flat = outputs.float().flatten(0, -2)
        loss = functional.cross_entropy(flat, y.flatten(), reduction="sum") / case.samples
        loss.backward()
        for parameter in net.parameters():
            parameter.grad = None

    stages: dict[str, Callable[[], object]] = {"gradient": ours, "PyTorch alone": plain}
    if place.type == "cuda":
        host = torch.empty(objective.size, pin_memory=True)
        device = torch.empty(objective.size, device=place)
        slab = torch.from_numpy(out)
        stages |= {
            "slab to staging": lambda: host.copy_(slab),
            "staging to device": lambda: device.copy_(host, non_blocking=True),
            "device to staging": lambda: host.copy_(device, non_blocking=True),
            "staging to slab": lambda: slab.copy_(host),
        }
    times: dict[str, list[float]] = {stage: [] for stage in stages}
    for stage in list(stages.values()) * 2:
        _timed(stage, place)
    until = time.perf_counter() + seconds
    for _ in range(_MAX_ROUNDS):
        for name, stage in stages.items():
            times[name].append(_timed(stage, place))
        if time.perf_counter() > until:
            break
    medians = {name: statistics.median(each) * 1e3 for name, each in times.items()}
    travel = sum(medians[name] for name in list(stages)[2:])
    excess = medians["gradient"] - medians["PyTorch alone"]
    return {
        "model": case.name,
        "precision": precision or "float32",
        "parameters": objective.size,
        "rounds": len(times["gradient"]),
        "milliseconds": medians,
        "ratio": medians["gradient"] / medians["PyTorch alone"],
        # If nothing overlapped.
        "transfers": travel / medians["gradient"],
        "hidden": 1 - excess / travel if travel else 0.0,
    }


def _plain(case: Case) -> nn.Module:
    net: nn.Module = globals()[case.make](**case.arguments)
    return net


def _timed(stage: Callable[[], object], place: torch.device) -> float:
    _wait(place)
    start = time.perf_counter()
    stage()
    _wait(place)
    return time.perf_counter() - start


def _wait(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


@contextmanager
def _told(title: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"  {title}: {time.perf_counter() - start:.1f} s", flush=True)


def main() -> int:
    """Checks and measures."""
    parser = argparse.ArgumentParser(description="Checks and measures of PyTorch modules on a GPU.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, help="the folder for gpu.json")
    parser.add_argument("--seconds", type=float, default=60, help="for all measurements together (60)")
    options = parser.parse_args()
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        print("no GPU was found; --device cpu checks the script itself", file=sys.stderr)
        return 2
    place = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    checks, rows = [], []
    with settled(1 if not cuda else 4):
        print(f"PyTorch {torch.__version__} on {torch.cuda.get_device_name(place) if cuda else 'the processor'}")
        for case in cases(small=not cuda):
            with _told(f"{case.name}, checks"):
                for what, holds, found in checked(case, gpus=1 if cuda else 0):
                    checks.append({"model": case.name, "check": what, "holds": bool(holds), "found": found})
                    print(f"{'ok  ' if holds else 'FAIL'} {case.name}: {what}{f' ({found})' if found else ''}", flush=True)
        work = [(case, precision) for case in cases(small=not cuda) for precision in ("", "bfloat16")]
        for case, precision in work:
            rows.append(measured(case, place, options.seconds / len(work), precision))
    heads = f"{'gradient':>9} {'PyTorch':>12} {'ratio':>6} {'transfers':>9} {'hidden':>6}"
    print(f"\n{'model':14} {'precision':9} {'parameters':>11} {heads}")
    for row in rows:
        times = row["milliseconds"]
        print(
            f"{row['model']:14} {row['precision']:9} {row['parameters']:11,} {times['gradient']:6.2f} ms "
            f"{times['PyTorch alone']:6.2f} ms {row['ratio']:6.3f} {row['transfers']:9.1%} {row['hidden']:6.0%}"
        )
    report = {"device": torch.cuda.get_device_name(place) if cuda else "cpu", "torch": torch.__version__}
    text = json.dumps(report | {"checks": checks, "measures": rows}, indent=1)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "gpu.json").write_text(text, encoding="utf-8")
    print(text)
    return 0 if all(check["holds"] for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
