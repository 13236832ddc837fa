"""Makes the reference numbers of the tests: run it with PyTorch 2.13 to make them anew.

    python tests/data/make_torch_reference.py

`torch_optimizers.npz`: for each case of CASES, the parameters of a fixed problem at some of its 200 steps, in single precision.
`torch_groups.npz`: for each case of GROUPED, input, targets, and the parameters before and after 50 steps, in double precision.
`torch_models.npz`: for each model of MODELS, parameters, input, targets, loss, output and gradients, in double precision.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
STEPS = 200
KEPT = [1, 2, 5, 10, 50, 100, 200]
ELEMENTS = 60

O = torch.optim  # noqa: E741
# For each case the specification of Thalweg's optimizer and PyTorch's.
CASES: dict[str, tuple[dict[str, Any], Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": ({"sgd": {"learning_rate": 0.05}}, lambda p: O.SGD(p, 0.05)),
    "sgd, weight decay": ({"sgd": {"learning_rate": 0.05, "weight_decay": 0.1}}, lambda p: O.SGD(p, 0.05, weight_decay=0.1)),
    "momentum": ({"momentum": {"learning_rate": 0.02}}, lambda p: O.SGD(p, 0.02, momentum=0.9)),
    "momentum, weight decay, dampening": (
        {"momentum": {"learning_rate": 0.02, "momentum": 0.8, "weight_decay": 0.1, "dampening": 0.3}},
        lambda p: O.SGD(p, 0.02, momentum=0.8, weight_decay=0.1, dampening=0.3),
    ),
    "nesterov": (
        {"momentum": {"learning_rate": 0.02, "nesterov": True}},
        lambda p: O.SGD(p, 0.02, momentum=0.9, nesterov=True),
    ),
    "nesterov, weight decay": (
        {"momentum": {"learning_rate": 0.02, "nesterov": True, "weight_decay": 0.1}},
        lambda p: O.SGD(p, 0.02, momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
    "adagrad": ({"adagrad": {}}, O.Adagrad),
    "adagrad, all": (
        {
            "adagrad": {
                "learning_rate": 0.1,
                "learning_rate_decay": 0.01,
                "weight_decay": 0.1,
                "initial_accumulator_value": 0.2,
                "eps": 1e-6,
            }
        },
        lambda p: O.Adagrad(p, 0.1, lr_decay=0.01, weight_decay=0.1, initial_accumulator_value=0.2, eps=1e-6),
    ),
    "rmsprop": ({"rmsprop": {}}, O.RMSprop),
    "rmsprop, weight decay": ({"rmsprop": {"weight_decay": 0.1}}, lambda p: O.RMSprop(p, weight_decay=0.1)),
    "rmsprop, centered": ({"rmsprop": {"centered": True, "alpha": 0.9}}, lambda p: O.RMSprop(p, centered=True, alpha=0.9)),
    "rmsprop, momentum": (
        {"rmsprop": {"learning_rate": 0.003, "momentum": 0.8, "centered": True}},
        lambda p: O.RMSprop(p, 0.003, momentum=0.8, centered=True),
    ),
    "adam": ({"adam": {}}, O.Adam),
    "adam, weight decay": (
        {"adam": {"learning_rate": 0.01, "betas": [0.8, 0.99], "weight_decay": 0.1}},
        lambda p: O.Adam(p, 0.01, betas=(0.8, 0.99), weight_decay=0.1),
    ),
    "adam, amsgrad": ({"adam": {"learning_rate": 0.01, "amsgrad": True}}, lambda p: O.Adam(p, 0.01, amsgrad=True)),
    "adamw": ({"adamw": {}}, O.AdamW),
    "adamw, all": (
        {"adamw": {"learning_rate": 0.02, "betas": [0.85, 0.98], "weight_decay": 0.2, "eps": 1e-6, "amsgrad": True}},
        lambda p: O.AdamW(p, 0.02, betas=(0.85, 0.98), weight_decay=0.2, eps=1e-6, amsgrad=True),
    ),
    "clipped": ({"sgd": {"learning_rate": 0.05}, "clip_global_norm": 0.7}, lambda p: O.SGD(p, 0.05)),
    "step schedule": (
        {"adam": {"learning_rate": 0.02}, "schedule": {"step": {"step_size": 3, "gamma": 0.5}}},
        lambda p: O.Adam(p, 0.02),
    ),
    "exponential schedule": (
        {"adam": {"learning_rate": 0.02}, "schedule": {"exponential": {"gamma": 0.9}}},
        lambda p: O.Adam(p, 0.02),
    ),
    "cosine schedule": (
        {"adam": {"learning_rate": 0.02}, "schedule": {"cosine": {"final_factor": 0.1}}},
        lambda p: O.Adam(p, 0.02),
    ),
    "warmup schedule": (
        {"adam": {"learning_rate": 0.02}, "schedule": {"warmup": {"steps": 50, "start_factor": 0.1}}},
        lambda p: O.Adam(p, 0.02),
    ),
}
STEPS_PER_EPOCH = 20
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step schedule": lambda o: O.lr_scheduler.StepLR(o, 3 * STEPS_PER_EPOCH, 0.5),
    "exponential schedule": lambda o: O.lr_scheduler.LambdaLR(o, lambda step: 0.9 ** (step // STEPS_PER_EPOCH)),
    "cosine schedule": lambda o: O.lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.002),
    "warmup schedule": lambda o: O.lr_scheduler.LinearLR(o, 0.1, 1.0, 50),
}


def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A fixed least-squares problem with noise of its own at each step: curvature, start, noise."""
    generator = np.random.default_rng(2013)
    curvature = generator.uniform(0.1, 3.0, ELEMENTS).astype(np.float32)
    start = generator.normal(size=ELEMENTS).astype(np.float32)
    return curvature, start, generator.normal(0, 0.3, (STEPS, ELEMENTS)).astype(np.float32)


def optimizers() -> None:
    """Writes `torch_optimizers.npz`."""
    curvature, start, noise = (torch.from_numpy(array) for array in problem())
    results = {}
    for name, (_, make) in CASES.items():
        parameters = torch.nn.Parameter(start.clone())
        optimizer = make([parameters])
        scheduler = SCHEDULERS[name](optimizer) if name in SCHEDULERS else None
        kept = []
        for step in range(STEPS):
            parameters.grad = curvature * parameters.detach() + noise[step]
            if name == "clipped":
                torch.nn.utils.clip_grad_norm_([parameters], 0.7)
            optimizer.step()
            if scheduler:
                scheduler.step()
            if step + 1 in KEPT:
                kept.append(parameters.detach().numpy().copy())
        results[name] = np.stack(kept)
    curvature, start, noise = problem()
    specs = json.dumps({name: spec for name, (spec, _) in CASES.items()})
    arrays: dict[str, Any] = {f"case {name}": values for name, values in results.items()}
    np.savez_compressed(
        HERE / "torch_optimizers.npz",
        curvature=curvature,
        start=start,
        noise=noise,
        kept=KEPT,
        steps_per_epoch=STEPS_PER_EPOCH,
        specs=specs,
        **arrays,
    )


# For each model its layers in Thalweg's terms, PyTorch's, and the loss.
MODELS: dict[str, tuple[list[dict[str, Any]], list[nn.Module], str]] = {
    "classifier": (
        [{"dense": {"units": 7}}, {"relu": {}}, {"dense": {"units": 4}}],
        [nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4)],
        "softmax_cross_entropy",
    ),
    "flattened, gelu": (
        [{"flatten": {}}, {"dense": {"units": 6}}, {"gelu": {}}, {"dense": {"units": 3}}],
        [nn.Flatten(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 3)],
        "softmax_cross_entropy",
    ),
    "gelu by tanh": (
        [{"dense": {"units": 6}}, {"gelu": {"approximate": "tanh"}}, {"dense": {"units": 2}}],
        [nn.Linear(5, 6), nn.GELU(approximate="tanh"), nn.Linear(6, 2)],
        "mean_squared_error",
    ),
    "probabilities": (
        [{"dense": {"units": 4}}, {"tanh": {}}, {"dense": {"units": 3}}, {"sigmoid": {}}],
        [nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.Sigmoid()],
        "binary_cross_entropy",
    ),
    "softmax inside": (
        [{"dense": {"units": 4}}, {"softmax": {}}, {"dense": {"units": 2, "bias": False}}],
        [nn.Linear(5, 4), nn.Softmax(dim=-1), nn.Linear(4, 2, bias=False)],
        "mean_squared_error",
    ),
    "more than one axis": (
        [{"dense": {"units": 4}}, {"sigmoid": {}}, {"flatten": {}}, {"dense": {"units": 2}}],
        [nn.Linear(3, 4), nn.Sigmoid(), nn.Flatten(), nn.Linear(8, 2)],
        "mean_squared_error",
    ),
}


def models() -> None:
    """Writes `torch_models.npz`."""
    torch.manual_seed(2013)
    arrays: dict[str, Any] = {}
    for name, (_, layers, loss_name) in MODELS.items():
        for layer in layers:
            # Made before the seed was set.
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        model = nn.Sequential(*layers).double()
        shape = (2, 3) if name in ("flattened, gelu", "more than one axis") else (5,)
        x = torch.randn(9, *shape, dtype=torch.float64)
        output = model(x)
        if loss_name == "softmax_cross_entropy":
            y = torch.randint(0, output.shape[1], (9,))
            loss = nn.CrossEntropyLoss()(output, y)
        elif loss_name == "binary_cross_entropy":
            y = torch.randint(0, 2, output.shape).double()
            loss = nn.BCELoss()(output, y)
        else:
            y = torch.randn_like(output)
            loss = nn.MSELoss()(output, y)
        loss.backward()
        arrays |= {f"{name}/x": x.numpy(), f"{name}/y": y.numpy(), f"{name}/output": output.detach().numpy()}
        arrays[f"{name}/loss"] = loss.item()
        for parameter_name, parameter in model.named_parameters():
            arrays[f"{name}/parameter {parameter_name}"] = parameter.detach().numpy()
            arrays[f"{name}/gradient {parameter_name}"] = parameter.grad.numpy() if parameter.grad is not None else 0.0
    specs = json.dumps({name: {"layers": layers, "loss": loss} for name, (layers, _, loss) in MODELS.items()})
    np.savez_compressed(HERE / "torch_models.npz", specs=specs, **arrays)


# A frozen layer, a layer that learns more slowly, and no weight decay for biases.
GROUPS: list[dict[str, Any]] = [
    {"pattern": "0.*", "frozen": True},
    {"pattern": "4.bias", "learning_rate_factor": 0.1, "weight_decay": 0},
    {"pattern": "4.*", "learning_rate_factor": 0.1},
    {"pattern": "*.bias", "weight_decay": 0},
]
# For each case Thalweg's optimizer, and PyTorch's with its learning rate and weight decay.
GROUPED: dict[str, tuple[dict[str, Any], Callable[[Any], torch.optim.Optimizer], float, float]] = {
    "momentum": (
        {"momentum": {"learning_rate": 0.1, "weight_decay": 0.2}, "clip_global_norm": 0.3},
        lambda groups: O.SGD(groups, momentum=0.9),
        0.1,
        0.2,
    ),
    "adamw": ({"adamw": {"learning_rate": 0.02, "weight_decay": 0.3}}, O.AdamW, 0.02, 0.3),
}
GROUPED_STEPS = 50


def groups() -> None:
    """Writes `torch_groups.npz`."""
    torch.manual_seed(2015)
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randint(0, 3, (20,))
    arrays: dict[str, Any] = {"x": x.numpy(), "y": y.numpy(), "steps": GROUPED_STEPS}
    for name, (spec, make, rate, decay) in GROUPED.items():
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        arrays |= {f"{name}/start {each}": values.detach().numpy().copy() for each, values in model.named_parameters()}
        model[0].requires_grad_(requires_grad=False)
        optimizer = make(
            [
                {"params": [model[2].weight], "lr": rate, "weight_decay": decay},
                {"params": [model[2].bias], "lr": rate, "weight_decay": 0},
                {"params": [model[4].weight], "lr": rate * 0.1, "weight_decay": decay},
                {"params": [model[4].bias], "lr": rate * 0.1, "weight_decay": 0},
            ]
        )
        for _ in range(GROUPED_STEPS):
            optimizer.zero_grad()
            nn.CrossEntropyLoss()(model(x), y).backward()
            if "clip_global_norm" in spec:
                trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
                nn.utils.clip_grad_norm_(trained, spec["clip_global_norm"])
            optimizer.step()
        arrays |= {f"{name}/end {each}": values.detach().numpy().copy() for each, values in model.named_parameters()}
    specs = json.dumps({name: {**spec, "groups": GROUPS} for name, (spec, *_) in GROUPED.items()})
    np.savez_compressed(HERE / "torch_groups.npz", specs=specs, **arrays)


if __name__ == "__main__":
    optimizers()
    models()
    groups()
