# ruff: noqa: E501 - a table of whole messages
"""Specifications: completed by the contract's defaults, refused with the field, what was given and what would do."""

from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor

from thalweg.contract.errors import ThalwegError
from thalweg.contract.rules import choice_of, default_of, real_oneofs, rules_of
from thalweg.learning import schedules
from thalweg.server import validation
from thalweg.server.deciding import synchrony
from thalweg.v1 import job_pb2

GOOD: dict[str, Any] = {
    "model": {"layers": [{"dense": {"units": 4}}, {"relu": {}}], "loss": "softmax_cross_entropy"},
    "data": {"builtin": "digits"},
    "optimizer": {"adam": {}},
}


def complete(**changes: Any) -> job_pb2.JobSpec:
    return validation.complete(json_format.ParseDict({**GOOD, **changes}, job_pb2.JobSpec()))


def test_defaults_are_filled_in() -> None:
    spec = complete()
    assert spec.name == "job"
    assert spec.training.microbatches == 4
    assert spec.training.synchrony.WhichOneof("policy") == "bulk"
    assert list(spec.optimizer.adam.betas) == [0.9, 0.999]
    assert spec.optimizer.schedule.WhichOneof("kind") == "constant"
    assert spec.model.layers[0].dense.bias is True
    assert not spec.optimizer.HasField("clip_global_norm")


def test_a_completed_specification_is_complete() -> None:
    spec = complete(optimizer={"adamw": {}, "schedule": {"warmup": {"steps": 3}}})
    assert validation.complete(spec) == spec


def test_local_steps_have_an_outer_optimizer() -> None:
    outer = complete(training={"synchrony": {"local": {}}}).training.synchrony.local.outer
    assert (outer.momentum.learning_rate, outer.momentum.momentum, outer.momentum.nesterov) == (0.7, 0.9, True)
    assert outer.schedule.WhichOneof("kind") == "constant"
    outer = complete(training={"synchrony": {"local": {"outer": {"sgd": {"learning_rate": 1}}}}}).training.synchrony.local.outer
    assert outer.WhichOneof("kind") == "sgd"


def test_codecs_have_defaults() -> None:
    assert complete().training.codec.WhichOneof("kind") == "float32"
    assert complete(training={"codec": {"int8": {}}}).training.codec.int8.block == 1024
    assert complete(training={"codec": {"top_k": {}}}).training.codec.top_k.fraction == 0.01
    assert complete(training={"codec": {"float32": {}}}, model={**GOOD["model"], "dtype": "float64"}).model.dtype == "float64"


def test_what_is_given_is_kept() -> None:
    spec = complete(seed=0, training={"epochs": 0}, optimizer={"adam": {"betas": [0.5, 0.6]}})
    assert spec.training.epochs == 0
    assert list(spec.optimizer.adam.betas) == [0.5, 0.6]


TORCH: dict[str, Any] = {"torch": {"entrypoint": "nets:resnet"}, "loss": "softmax_cross_entropy"}
DEEP = "{" + '"a":{' * 17 + "}" * 18


def test_models_of_ones_own() -> None:
    spec = complete(model=TORCH)
    assert (spec.model.torch.arguments, spec.model.dtype) == ("{}", "float32")
    for loss in ("model", "nets:loss"):
        assert complete(model={**TORCH, "loss": loss, "dtype": "float64"}).model.loss == loss
    code = {"path": "./nets", "sha256": "0" * 64, "requirements": ["einops==0.8.1", "torch>=2,<3"]}
    spec = complete(model={"jax": {"entrypoint": "my.nets:Net.make", "arguments": '{"width":16}'}}, code=code)
    assert list(spec.code.requirements) == code["requirements"]
    assert not spec.model.HasField("loss")
    assert complete(model=TORCH, code={"requirements": ["timm"]}).code.requirements == ["timm"]


# A model may have layers instead; code may be in packages alone.
OPTIONAL = {"thalweg.v1.Model.kind", "thalweg.v1.Code.source", "thalweg.v1.HeldOut.source", "thalweg.v1.HeldOut.by"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": {"adam": {"learning_rate": -1}}}, "optimizer.adam.learning_rate: -1 is not allowed; it must be above 0"),
    ({"optimizer": {"adam": {"learning_rate": "NaN"}}}, "optimizer.adam.learning_rate: nan is not a finite number; it must be above 0"),
    ({"optimizer": {"adam": {"learning_rate": "Infinity"}}}, "optimizer.adam.learning_rate: inf is not a finite number; it must be above 0"),
    ({"optimizer": {"adam": {"betas": [0.9]}}}, "optimizer.adam.betas: has 1 item; it must have exactly 2"),
    ({"optimizer": {"adam": {"betas": [0.9, 1]}}}, "optimizer.adam.betas[1]: 1 is not allowed; it must be at least 0 and below 1"),
    ({"optimizer": {}}, "optimizer: one of these must be given: sgd, momentum, adagrad, rmsprop, adam, adamw, lamb"),
    ({"optimizer": {"sgd": {}, "schedule": {"step": {}}}}, "optimizer.schedule.step.step_size: must be given; it must be at least 1"),
    ({"training": {"batch_size": 0}}, "training.batch_size: 0 is not allowed; it must be at least 1"),
    ({"training": {"gradient": "numeric"}}, "training.gradient: unknown value 'numeric'; expected one of backpropagation, numerical, numerical_forward; did you mean 'numerical'?"),
    ({"model": {"layers": [], "loss": "mean_squared_error"}}, "model.layers: has 0 items; it must have at least 1"),
    ({"model": {"layers": [{"dense": {"units": 1}}]}}, "model.loss: must be given: one of mean_squared_error, softmax_cross_entropy, binary_cross_entropy"),
    ({"model": {"layers": [{}], "loss": "mean_squared_error"}}, "model.layers[0]: one of these must be given: dense, relu, sigmoid, tanh, softmax, gelu, dropout, flatten, sequence"),
    ({"data": {"builtin": "digits", "validation_fraction": 1}}, "data.validation_fraction: 1 is not allowed; it must be at least 0 and below 1"),
    ({"data": {"builtin": "digits", "validation_fraction": 0.1, "validation": {"fraction": 0.2}}}, "data.validation_fraction: is the same as data.validation.fraction; leave one of them out"),
    ({"data": {"builtin": "digits", "test": {"stratify": "y"}}}, "data.test: one of these must be given: fraction, file"),
    ({"data": {"builtin": "digits", "test": {"fraction": 1}}}, "data.test.fraction: 1 is not allowed; it must be above 0 and below 1"),
    ({"data": {"builtin": "digits", "test": {"file": "a.npz"}}}, "data.test.file: is possible only where the job's data is a file too"),
    ({"data": {"npz": "a.npz", "sha256": "0" * 64, "test": {"file": "ftp://b.npz"}}}, "data.test.file: ftp:// is not read; use one of file://, https://, http://, s3://, gs://"),
    ({"data": {"npz": "a.npz", "sha256": "0" * 64, "test": {"npy": {"x": "x.npy", "y": "y.npy"}}}}, "data.test.npy: is not possible with data.npz; write data.test.file"),
    ({"data": {"npz": "a.npz", "sha256": "0" * 64, "test": {"file": "b.npz"}}}, "data.test.file: upload the file first (UploadData) and give its SHA-256 in data.test.sha256"),
    ({"data": {"npz": "a.npz", "sha256": "0" * 64, "test": {"file": "b.npz", "sha256": "1" * 64, "fraction": 0.1}}}, "data.test.fraction: is not possible with a file of its own; leave one of them out"),
    ({"model": {**TORCH, "layers": [{"relu": {}}]}}, "model: layers and torch are alternatives; give one of them"),
    ({"model": {"torch": {}, "loss": "model"}}, "model.torch.entrypoint: must be given"),
    ({"model": {**TORCH, "torch": {"entrypoint": "nets.resnet"}}}, "model.torch.entrypoint: invalid value 'nets.resnet'; use a module and a name in it, as in nets:resnet"),
    ({"model": {"torch": TORCH["torch"]}}, "model.loss: must be given: one of mean_squared_error, softmax_cross_entropy, binary_cross_entropy, model, or an entry point, as in nets:loss"),
    ({"model": {**TORCH, "loss": "mse"}}, "model.loss: unknown value 'mse'; expected one of mean_squared_error, softmax_cross_entropy, binary_cross_entropy, model, or an entry point, as in nets:loss; did you mean 'mean_squared_error'?"),
    ({"model": {**TORCH, "loss": "nets:"}}, "model.loss: invalid value 'nets:'; use a module and a name in it, as in nets:resnet"),
    ({"model": {"jax": TORCH["torch"], "loss": "mean_squared_error"}}, "model.loss: 'mean_squared_error' is not allowed: a model of the kind jax has its own loss; leave it out"),
    ({"model": {**GOOD["model"], "loss": "model"}}, "model.loss: 'model' is the module's own, which only model.torch has; give one of mean_squared_error, softmax_cross_entropy, binary_cross_entropy"),
    ({"model": {**GOOD["model"], "loss": "nets:loss"}}, "model.loss: 'nets:loss' is an entry point, which only model.torch has; give one of mean_squared_error, softmax_cross_entropy, binary_cross_entropy"),
    ({"model": {**TORCH, "torch": {"entrypoint": "nets:resnet", "arguments": "[1]"}}}, "model.torch.arguments: '[1]' is not a table: it must be a JSON object"),
    ({"model": {**TORCH, "torch": {"entrypoint": "nets:resnet", "arguments": '{"a":NaN}'}}}, "model.torch.arguments: '{\"a\":NaN}' is not a table: it must be a JSON object"),
    ({"model": {**TORCH, "torch": {"entrypoint": "nets:resnet", "arguments": "[" * 60000}}}, f"model.torch.arguments: '{'[' * 57}...' is not a table: it must be a JSON object"),
    ({"model": {**TORCH, "torch": {"entrypoint": "nets:resnet", "arguments": '{"a":[null]}'}}}, "model.torch.arguments: null is not allowed; leave the argument out"),
    ({"model": {**TORCH, "torch": {"entrypoint": "nets:resnet", "arguments": DEEP}}}, "model.torch.arguments: is nested too deeply; at most 16 tables and lists may be in each other"),
    ({"model": {**TORCH, "torch": {"entrypoint": "nets:resnet", "arguments": '{"a":"' + "x" * 65536 + '"}'}}}, "model.torch.arguments: has 65544 characters; at most 65536 are allowed"),
    ({"code": {"path": "nets.py", "sha256": "0" * 64}}, "code: is given, but the job has no entry point, such as model.torch; leave it out"),
    ({"model": TORCH, "code": {"path": "nets.py"}}, "code.path: upload the archive first (UploadData) and give its SHA-256 in code.sha256"),
    ({"model": TORCH, "code": {}}, "code: is empty; give path, requirements, or both"),
    ({"model": TORCH, "code": {"path": ""}}, "code.path: must not be empty"),
    ({"model": TORCH, "code": {"sha256": "0" * 64}}, "code.sha256: is that of an uploaded archive, and code.path is not given; leave it out"),
    ({"model": TORCH, "code": {"path": "a", "sha256": "0" * 64, "requirements": ["-r x"]}}, "code.requirements[0]: invalid value '-r x'; use the name of a package, with versions if need be, as in einops==0.8.1"),
    ({"data": {}}, "data: one of these must be given: builtin, npz, csv, json_lines, python, parquet, arrow, images, npy"),
    ({"data": {"npz": "a.npz"}}, "data.npz: upload the file first (UploadData) and give its SHA-256 in data.sha256"),
    ({"data": {"builtin": "xor", "target": "y"}}, "data.target: names a column of a table, and the data is not one"),
    ({"data": {"builtin": "xor", "header": False}}, "data.header: says how a CSV file is written, and the data is not one; leave it out"),
    (
        {"data": {"json_lines": "a.jsonl", "sha256": "0" * 64, "decimal": "comma"}},
        "data.decimal: says how a CSV file is written, and the data is not one; leave it out",
    ),
    (
        {"data": {"csv": "a.csv", "sha256": "0" * 64, "delimiter": ";"}},
        "data.delimiter: unknown value ';'; expected one of comma, semicolon, tab, bar",
    ),
    ({"data": {"builtin": "xor", "missing": "mean"}}, "data.missing: is for tables, and data.builtin is not one; leave it out"),
    ({"data": {"csv": "a.csv", "sha256": "0" * 64, "target": "a", "targets": ["b"]}}, "data.targets: is given beside data.target; give one of them"),
    ({"data": {"csv": "a.csv", "sha256": "0" * 64, "columns": {"a b": {"type": "date"}}}}, "data.columns.a b.type: unknown value 'date'; expected one of number, text, boolean, time"),
    ({"data": {"csv": "a.csv", "sha256": "0" * 64, "columns": {"a": {"buckets": 0}}}}, "data.columns.a.buckets: 0 is not allowed; it must be at least 1 and at most 65536"),
    ({"name": "My job"}, "name: invalid value 'My job'; use 1 to 50 lower-case letters, digits and hyphens, with a letter first and no hyphen last"),
    ({"seed": -1}, "seed: -1 is not allowed; it must be at least 0"),
    ({"optimizer": {"momentum": {"nesterov": True, "dampening": 0.5}}}, "optimizer.momentum.dampening: 0.5 is not allowed with Nesterov's momentum; it must be 0"),
    ({"training": {"gradient": "numerical", "synchrony": {"local": {}}}}, "training.gradient: numerical is not possible with local steps; use backpropagation"),
    ({"training": {"codec": {"int8": {"block": 1}}}}, "training.codec.int8.block: 1 is not allowed; it must be at least 8 and at most 65536"),
    ({"training": {"codec": {"top_k": {"fraction": 0.6}}}}, "training.codec.top_k.fraction: 0.6 is not allowed; it must be above 0 and at most 0.5"),
    ({"training": {"codec": {"bfloat16": {}}}, "model": {**GOOD["model"], "dtype": "float64"}}, "training.codec: bfloat16 is not possible with model.dtype float64; use float32, which sends numbers as they are"),
    ({"training": {"codec": {"int8": {}}, "gradient": "numerical"}}, "training.codec: int8 is not possible with training.gradient numerical; use float32"),
    ({"training": {"synchrony": {"local": {"steps": 0}}}}, "training.synchrony.local.steps: 0 is not allowed; it must be at least 1 and at most 1000000"),
    ({"training": {"synchrony": {"local": {"outer": {"momentum": {"nesterov": True, "momentum": 0}}}}}}, "training.synchrony.local.outer.momentum.momentum: 0 is not allowed with Nesterov's momentum; it must be above 0"),
]  # fmt: skip


def test_data_at_urls_is_not_uploaded() -> None:
    for source in ({"csv": "https://host/a.csv?token=1"}, {"npy": {"x": "s3://bucket/x.npy", "y": "gs://bucket/y.npy"}}):
        assert not complete(data=source).data.sha256


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"csv": "ftp://host/a"}, "data.csv: ftp:// is not read; use one of file://, https://, http://, s3://, gs://"),
        (
            {"parquet": "s3://user:key@bucket/a"},
            "data.parquet: holds a user or a password; leave them out: credentials come from the environment of workers",
        ),
        (
            {"npy": {"x": "s3://bucket/x.npy", "y": "y.npy"}},
            "data.npy: names a URL beside the path of a file; give URLs, or paths, alone",
        ),
        (
            {"npz": "file:///a.npz", "sha256": "0" * 64},
            "data.sha256: is that of an uploaded file, and the data is at a URL; leave it out",
        ),
    ],
)
def test_urls_that_are_wrong(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ThalwegError) as caught:
        complete(data=data)
    assert str(caught.value) == message


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_is_wrong_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ThalwegError) as caught:
        complete(**changes)
    assert caught.value.reason == "INVALID_ARGUMENT"
    assert str(caught.value) == message


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ThalwegError) as caught:
        complete(seed=-1, training={"batch_size": 0, "epochs": 1}, optimizer={"sgd": {"learning_rate": 0}})
    fields = [violation.field for violation in caught.value.violations]
    assert fields == ["seed", "training.batch_size", "optimizer.sgd.learning_rate"]


def test_schedules_cannot_be_nested_without_end() -> None:
    schedule: dict[str, Any] = {"cosine": {}}
    for _ in range(40):
        schedule = {"warmup": {"steps": 1, "then": schedule}}
    with pytest.raises(ThalwegError, match="nested too deeply"):
        complete(optimizer={"sgd": {}, "schedule": schedule})


@pytest.mark.parametrize("job_id", ["", "-a", "a-", "A", "1a", "a" * 64, "a_b", "a/b", "a\n"])
def test_ids_that_will_not_do(job_id: str) -> None:
    with pytest.raises(ThalwegError, match="job_id"):
        validation.check_job_id(job_id)


@pytest.mark.parametrize("job_id", ["a", "digits-1", "a" * 63])
def test_ids_that_will_do(job_id: str) -> None:
    validation.check_job_id(job_id)


def messages(descriptor: Descriptor, seen: dict[str, Descriptor]) -> dict[str, Descriptor]:
    if descriptor.name not in seen:
        seen[descriptor.name] = descriptor
        for field in descriptor.fields:
            if field.message_type:
                messages(field.message_type, seen)
    return seen


def test_every_default_keeps_its_own_rules() -> None:
    for descriptor in messages(job_pb2.JobSpec.DESCRIPTOR, {}).values():
        for field in descriptor.fields:
            default = default_of(field)
            if default is not None and field.message_type is None:
                for value in default if isinstance(default, list) else [default]:
                    validation.check_value(field, value, field.name)
        for oneof in real_oneofs(descriptor):
            default = choice_of(oneof).default
            if oneof.full_name in OPTIONAL:
                continue
            assert choice_of(oneof).required or default in [field.name for field in oneof.fields]


def test_every_scalar_of_a_job_has_a_rule() -> None:
    """No number may be given without a bound that somebody thought about, and no text without a pattern or a list."""
    free = {
        "Data.builtin",
        "Data.npz",
        "Data.csv",
        "Data.target",
        "Data.header",
        "ColumnsEntry.key",
        "Initial.job",
        "Initial.file",
    }
    for descriptor in messages(job_pb2.JobSpec.DESCRIPTOR, {}).values():
        for field in descriptor.fields:
            if field.message_type is None and f"{descriptor.name}.{field.name}" not in free:
                assert rules_of(field).ByteSize(), f"{descriptor.name}.{field.name}"


def test_registries_are_the_contracts() -> None:
    assert list(schedules.SCHEDULES) == [field.name for field in job_pb2.Schedule.DESCRIPTOR.oneofs_by_name["kind"].fields]
    assert list(synchrony.POLICIES) == [field.name for field in job_pb2.Synchrony.DESCRIPTOR.oneofs_by_name["policy"].fields]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"step": {"step_size": 2, "gamma": 0.5}}, [1, 1, 0.5, 0.125]),
        ({"exponential": {"gamma": 0.5}}, [1, 0.5, 0.25, 2**-7]),
        ({"cosine": {"final_factor": 0.2}}, [1, 0.9414213562, 0.7218398, 0.2]),
        ({"warmup": {"steps": 20, "start_factor": 0.5}}, [0.5, 0.75, 1, 1]),
        ({"warmup": {"steps": 10, "start_factor": 0.5, "then": {"exponential": {"gamma": 0.5}}}}, [0.5, 1, 0.5, 2**-6]),
    ],
)
def test_schedules(spec: dict[str, Any], expected: list[float]) -> None:
    schedule = complete(optimizer={"sgd": {}, "schedule": spec}).optimizer.schedule
    found = [schedules.factor(schedule, step, 10, 75) for step in (0, 10, 20, 75)]
    if "cosine" not in spec:
        assert found == pytest.approx(expected)
    else:
        assert found[0] == 1
        assert found[-1] == pytest.approx(0.2)
        assert found == sorted(found, reverse=True)
