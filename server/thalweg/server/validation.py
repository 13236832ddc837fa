"""The one place where a job's specification is checked and completed, by the annotations of the contract.

Every violation is reported: the field's path, the value given, and the values allowed.
"""

import difflib
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from thalweg.contract import addresses
from thalweg.contract.code import entry_points, is_entry_point
from thalweg.contract.errors import Violation, invalid
from thalweg.contract.rules import HELD_OUT, choice_of, default_of, files, real_oneofs, rules_of, value_of
from thalweg.contract.text import MAX_STATUS_BYTES
from thalweg.v1 import job_pb2, options_pb2

_JOB_ID = re.compile("[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_REQUEST_ID = re.compile("[!-~]{1,128}")
# A schedule within a schedule within a schedule is enough.
_MAX_DEPTH = 24
# Of tables and lists in a table of arguments.
_MAX_TABLE_DEPTH = 16
_ENTRY_POINT = job_pb2.EntryPoint.DESCRIPTOR.fields_by_name["entrypoint"]
_OR_ENTRY_POINT = ", or an entry point, as in nets:loss"
# The kind of a model without one.
_SEQUENTIAL = "sequential"
# Fields of data for tables, and the sources that are none.
_OF_TABLES = ("targets", "features", "ignore", "missing", "columns")
_OF_CSV = ("header", "delimiter", "encoding", "decimal", "missing_values")
_ARRAYS = ("builtin", "npz", "npy", "python", "images")
# A status travels in gRPC's trailers, three times over, and those may be refused beyond 8 KiB.
_MAX_SHOWN = 60
# A thousand layers take a quarter of it. A job travels as a part of other messages, and those have gRPC's limit.
_MAX_BYTES = 1 << 17


def complete(spec: job_pb2.JobSpec) -> job_pb2.JobSpec:
    """A copy of a specification with every default filled in.

    Raises ThalwegError (INVALID_ARGUMENT) with all violations if it is not right.
    """
    completed = job_pb2.JobSpec()
    completed.CopyFrom(spec)
    if completed.ByteSize() > _MAX_BYTES:
        raise invalid(Violation("spec", f"has {completed.ByteSize():,} bytes; at most {_MAX_BYTES:,} are allowed"))
    violations = list(_complete(completed, "", 0))
    wrong = {violation.field for violation in violations}
    violations += [violation for violation in _across_fields(completed) if violation.field not in wrong]
    if violations:
        raise invalid(*_as_many_as_travel(violations))
    return completed


def check_request(request: Message) -> None:
    """Checks a request by the rules of its fields. Raises ThalwegError (INVALID_ARGUMENT) with all violations."""
    if violations := list(_complete(request, "", 0)):
        raise invalid(*_as_many_as_travel(violations))


def check_value(field: FieldDescriptor, value: Any, path: str) -> None:
    """Checks one value by its field's rules. Raises ThalwegError (INVALID_ARGUMENT) if it is not right."""
    violations = list(_check(value, rules_of(field), path))
    if violations:
        raise invalid(*violations)


def check_job_id(job_id: str) -> None:
    """Raises ThalwegError (INVALID_ARGUMENT) if a chosen id is not valid."""
    if not _JOB_ID.fullmatch(job_id):
        what = "1 to 63 lower-case letters, digits and hyphens, with a letter first and no hyphen last"
        raise invalid(Violation("job_id", f"invalid job id {shown(job_id)}; use {what}"))


def check_request_id(request_id: str) -> None:
    """Raises ThalwegError (INVALID_ARGUMENT) if a request's id, where there is one, is not valid."""
    if not _REQUEST_ID.fullmatch(request_id):
        what = "1 to 128 printable ASCII characters without spaces, such as a UUID"
        raise invalid(Violation("request_id", f"invalid request id {shown(request_id)}; use {what}"))


def _as_many_as_travel(violations: list[Violation]) -> list[Violation]:
    """The first violations, and how many more there are."""
    told: list[Violation] = []
    room = MAX_STATUS_BYTES
    for violation in violations:
        room -= len(str(violation).encode()) + 1
        if told and room < 0:
            left = len(violations) - len(told)
            return [*told, Violation("", f"and {left} more mistake{'' if left == 1 else 's'}")]
        told.append(violation)
    return told


def _complete(message: Message, path: str, depth: int) -> Iterator[Violation]:
    """Fills in a message's defaults, and yields what is wrong in it and below."""
    if depth > _MAX_DEPTH:
        yield Violation(path, "is nested too deeply")
        return
    descriptor = cast("Descriptor", message.DESCRIPTOR)
    unknown = UnknownFieldSet(message)
    for number in sorted({unknown[index].field_number for index in range(len(unknown))}):
        # Ignoring it would train something other than what was asked for.
        subject = "" if path else "the job "
        yield Violation(path, f"{subject}has a field, number {number}, that this server does not know; the client may be newer")
    oneofs = real_oneofs(descriptor)
    for oneof in oneofs:
        if message.WhichOneof(oneof.name) is None:
            choice = choice_of(oneof)
            if choice.default:
                getattr(message, choice.default).SetInParent()
            elif choice.required:
                yield Violation(path, f"one of these must be given: {_names(oneof.fields)}")
    for field in descriptor.fields:
        where = f"{path}.{field.name}" if path else field.name
        if field.containing_oneof in oneofs:
            if message.WhichOneof(field.containing_oneof.name) != field.name:
                continue
        elif not _given(message, field):
            if rules_of(field).required:
                yield Violation(where, _required(field))
                continue
            if default_of(field) is None:
                yield from _check_length(0, rules_of(field), where) if field.is_repeated else ()
                continue
            json_format.ParseDict({field.name: default_of(field)}, message)
        yield from _complete_field(message, field, where, depth)


def _complete_field(message: Message, field: FieldDescriptor, path: str, depth: int) -> Iterator[Violation]:
    value, rules = getattr(message, field.name), rules_of(field)
    if values := value_of(field):
        yield from _check_length(len(value), rules, path)
        for key in sorted(value):
            yield from _complete_value(value[key], values, f"{path}.{shown_key(key)}", depth)
        return
    if not field.is_repeated:
        yield from _complete_value(value, field, path, depth)
        return
    yield from _check_length(len(value), rules, path)
    if rules.max_length and len(value) > rules.max_length:
        return
    for index, item in enumerate(value):
        yield from _complete_value(item, field, f"{path}[{index}]", depth)


def _complete_value(value: Any, field: FieldDescriptor, path: str, depth: int) -> Iterator[Violation]:
    if field.message_type:
        yield from _complete(value, path, depth + 1)
    else:
        yield from _check(value, rules_of(field), path)


def _given(message: Message, field: FieldDescriptor) -> bool:
    if field.is_repeated:
        return len(getattr(message, field.name)) > 0
    if field.has_presence:
        return message.HasField(field.name)
    return bool(getattr(message, field.name) != field.default_value)


def _check(value: Any, rules: options_pb2.FieldRules, path: str) -> Iterator[Violation]:
    if isinstance(value, str):
        yield from _check_text(value, rules, path)
    elif isinstance(value, float) and not math.isfinite(value):
        yield Violation(path, f"{value} is not a finite number{_allowed(rules)}")
    elif not isinstance(value, bool) and not _within(value, rules):
        yield Violation(path, f"{shown(value)} is not allowed{_allowed(rules)}")


def _within(value: float, rules: options_pb2.FieldRules) -> bool:
    return (
        (not rules.HasField("at_least") or value >= rules.at_least)
        and (not rules.HasField("above") or value > rules.above)
        and (not rules.HasField("at_most") or value <= rules.at_most)
        and (not rules.HasField("below") or value < rules.below)
    )


def _allowed(rules: options_pb2.FieldRules) -> str:
    bounds = [
        ("at least", rules.at_least, rules.HasField("at_least")),
        ("above", rules.above, rules.HasField("above")),
        ("at most", rules.at_most, rules.HasField("at_most")),
        ("below", rules.below, rules.HasField("below")),
    ]
    told = [f"{words} {shown(bound)}" for words, bound, stated in bounds if stated]
    return f"; it must be {' and '.join(told)}" if told else ""


def _check_text(value: str, rules: options_pb2.FieldRules, path: str) -> Iterator[Violation]:
    if rules.entrypoint and is_entry_point(value):
        yield from _check_text(value, rules_of(_ENTRY_POINT), path)
        return
    if rules.one_of and value not in rules.one_of:
        yield Violation(path, none_of(value, list(rules.one_of), entrypoint=rules.entrypoint))
    if rules.pattern and not re.fullmatch(rules.pattern, value):
        yield Violation(path, f"invalid value {shown(value)}; use {rules.pattern_words}")
    if rules.max_length and len(value) > rules.max_length:
        yield Violation(path, f"has {len(value)} characters; at most {rules.max_length} are allowed")
    elif rules.table and (wrong := _wrong_table(value)):
        yield Violation(path, wrong)


def _wrong_table(text: str) -> str:
    """What is wrong with a table, which is a JSON object; nothing, if it is one."""
    try:
        table = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return f"{shown(text)} is not a table: it must be a JSON object"
    return _wrong_value(table, 0) if isinstance(table, dict) else f"{shown(text)} is not a table: it must be a JSON object"


def _wrong_value(value: Any, depth: int) -> str:
    if depth > _MAX_TABLE_DEPTH:
        return f"is nested too deeply; at most {_MAX_TABLE_DEPTH} tables and lists may be in each other"
    if value is None:
        return "null is not allowed; leave the argument out"
    if isinstance(value, float) and not math.isfinite(value):
        return "a number in it is too large"
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next(filter(None, (_wrong_value(each, depth + 1) for each in below)), "")


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON's")


def _check_length(length: int, rules: options_pb2.FieldRules, path: str) -> Iterator[Violation]:
    if length < rules.min_length or (rules.max_length and length > rules.max_length):
        wanted = f"at least {rules.min_length}" if length < rules.min_length else f"at most {rules.max_length}"
        exactly = f"exactly {rules.min_length}" if rules.min_length == rules.max_length else wanted
        yield Violation(path, f"has {length} item{'' if length == 1 else 's'}; it must have {exactly}")


def shown_key(key: str) -> str:
    """The key of a map in a path: cut if it is long."""
    return key if len(key) <= _MAX_SHOWN else key[: _MAX_SHOWN - 3] + "..."


def none_of(value: str, known: list[str], *, entrypoint: bool = False) -> str:
    """The message for a name that is not one of those known, with the most likely intended ones, if there are any.

    `entrypoint` is whether an entry point would do as well.
    """
    named = [name for name in known if name.endswith(f"_{value}")]
    initials = [name for name in known if "".join(word[0] for word in name.split("_")) == value.lower()]
    meant = initials or named or difflib.get_close_matches(value.lower(), known, 1)
    hint = f"; did you mean {' or '.join(map(repr, meant))}?" if meant else ""
    other = _OR_ENTRY_POINT if entrypoint else ""
    return f"unknown value {shown(value)}; expected one of {', '.join(known)}{other}{hint}"


def shown(value: str | float) -> str:
    """A value in an error message: numbers as users write them, long texts cut."""
    if isinstance(value, str):
        return repr(value if len(value) <= _MAX_SHOWN else value[: _MAX_SHOWN - 3] + "...")
    return str(value).removesuffix(".0")


def _required(field: FieldDescriptor) -> str:
    rules = rules_of(field)
    if rules.one_of:
        return f"must be given: one of {', '.join(rules.one_of)}"
    return f"must be given{_allowed(rules)}"


def _names(fields: Sequence[FieldDescriptor]) -> str:
    return ", ".join(field.name for field in fields)


def _across_fields(spec: job_pb2.JobSpec) -> Iterator[Violation]:
    """Violations that concern more than one field."""
    # A model that is missing is one mistake.
    if spec.HasField("model"):
        yield from _across_model(spec.model)
    yield from _across_code(spec)
    yield from _across_momentum(spec.optimizer.momentum, "optimizer")
    yield from _across_momentum(spec.training.synchrony.local.outer.momentum, "training.synchrony.local.outer")
    yield from _across_training(spec.training)
    yield from _across_torch(spec)
    yield from _across_codec(spec)
    yield from _across_data(spec.data)
    yield from _across_initial(spec.model.initial)


def _across_model(model: job_pb2.Model) -> Iterator[Violation]:
    kind = model.WhichOneof("kind") or _SEQUENTIAL
    rules = rules_of(job_pb2.Model.DESCRIPTOR.fields_by_name["loss"])
    own = model.loss == "model" or is_entry_point(model.loss)
    if model.layers and kind != _SEQUENTIAL:
        yield Violation("model", f"layers and {kind} are alternatives; give one of them")
    elif not model.layers and kind == _SEQUENTIAL:
        yield Violation("model.layers", "has 0 items; it must have at least 1")
    if kind in ("jax", "python"):
        if model.loss:
            yield Violation(
                "model.loss", f"{shown(model.loss)} is not allowed: a model of the kind {kind} has its own loss; leave it out"
            )
    elif not model.HasField("loss"):
        names = [name for name in rules.one_of if kind == "torch" or name != "model"]
        other = _OR_ENTRY_POINT if kind == "torch" else ""
        yield Violation("model.loss", f"must be given: one of {', '.join(names)}{other}")
    elif own and kind == _SEQUENTIAL:
        names = [name for name in rules.one_of if name != "model"]
        what = "is the module's own" if model.loss == "model" else "is an entry point"
        yield Violation("model.loss", f"{shown(model.loss)} {what}, which only model.torch has; give one of {', '.join(names)}")


def _across_code(spec: job_pb2.JobSpec) -> Iterator[Violation]:
    if not spec.HasField("code"):
        return
    if not entry_points(spec):
        yield Violation("code", "is given, but the job has no entry point, such as model.torch; leave it out")
    elif not spec.code.HasField("path"):
        if spec.code.sha256:
            yield Violation("code.sha256", "is that of an uploaded archive, and code.path is not given; leave it out")
        elif not spec.code.requirements:
            yield Violation("code", "is empty; give path, requirements, or both")
    elif not spec.code.path:
        yield Violation("code.path", "must not be empty")
    elif not spec.code.sha256:
        yield Violation("code.path", "upload the archive first (UploadData) and give its SHA-256 in code.sha256")


def _across_momentum(momentum: job_pb2.Momentum, path: str) -> Iterator[Violation]:
    if momentum.dampening and (momentum.nesterov or not momentum.momentum):
        where = "with Nesterov's momentum" if momentum.nesterov else "without momentum"
        yield Violation(f"{path}.momentum.dampening", f"{shown(momentum.dampening)} is not allowed {where}; it must be 0")
    if momentum.nesterov and not momentum.momentum:
        yield Violation(f"{path}.momentum.momentum", "0 is not allowed with Nesterov's momentum; it must be above 0")


def _across_training(training: job_pb2.Training) -> Iterator[Violation]:
    if training.synchrony.WhichOneof("policy") == "local" and training.gradient.startswith("numerical"):
        yield Violation("training.gradient", f"{training.gradient} is not possible with local steps; use backpropagation")


def _across_torch(spec: job_pb2.JobSpec) -> Iterator[Violation]:
    """Violations of what only PyTorch modules can have."""
    model, gpus = spec.model, spec.training.resources.gpus
    if model.precision and model.WhichOneof("kind") != "torch":
        yield Violation("model.precision", f"{shown(model.precision)} is possible with model.torch only; leave it out")
    elif model.precision and model.dtype != "float32":
        yield Violation("model.precision", f"{shown(model.precision)} needs model.dtype float32")
    if model.compile:
        yield from _across_compile(spec)
    if gpus and model.WhichOneof("kind") != "torch":
        yield Violation("training.resources.gpus", f"{shown(gpus)} is not allowed: only model.torch computes on GPUs")
    elif gpus > 1 and gpus != int(gpus):
        yield Violation("training.resources.gpus", f"{shown(gpus)} is not possible; give a whole number, or a part of one GPU")


def _across_compile(spec: job_pb2.JobSpec) -> Iterator[Violation]:
    if spec.model.WhichOneof("kind") != "torch":
        yield Violation("model.compile", "is possible with model.torch only; leave it out")
    elif spec.training.resources.gpus:
        yield Violation("model.compile", "is for processors, and training.resources.gpus asks for a GPU; leave one of them out")
    elif spec.training.gradient != "backpropagation":
        yield Violation("model.compile", f"has no effect with training.gradient {spec.training.gradient}; leave one of them out")


def _across_codec(spec: job_pb2.JobSpec) -> Iterator[Violation]:
    kind, gradient, dtype = spec.training.codec.WhichOneof("kind"), spec.training.gradient, spec.model.dtype
    if kind in (None, "float32"):
        return
    if dtype == "float64":
        yield Violation(
            "training.codec", f"{kind} is not possible with model.dtype float64; use float32, which sends numbers as they are"
        )
    elif gradient.startswith("numerical"):
        yield Violation("training.codec", f"{kind} is not possible with training.gradient {gradient}; use float32")


def _across_data(data: job_pb2.Data) -> Iterator[Violation]:
    source = data.WhichOneof("source")
    if source and not getattr(data, source):
        yield Violation(f"data.{source}", "must not be empty")
    elif addresses.urls_of(data):
        yield from _across_urls(data, "data")
    elif source in files(job_pb2.Data, "source") and not data.sha256:
        yield Violation(f"data.{source}", "upload the file first (UploadData) and give its SHA-256 in data.sha256")
    elif source == "builtin" and data.sha256:
        yield Violation("data.sha256", "is that of an uploaded file, and the data is built in; leave it out")
    if data.target and source not in ("csv", "json_lines", "python", "parquet", "arrow"):
        yield Violation("data.target", "names a column of a table, and the data is not one")
    for field, _ in data.ListFields():
        if field.name in _OF_TABLES and source in _ARRAYS:
            yield Violation(f"data.{field.name}", f"is for tables, and data.{source} is not one; leave it out")
    if data.target and data.targets:
        yield Violation("data.targets", "is given beside data.target; give one of them")
    for field, _ in data.ListFields():
        if field.name in _OF_CSV and source != "csv":
            yield Violation(f"data.{field.name}", "says how a CSV file is written, and the data is not one; leave it out")
    if data.pixels and source != "images":
        yield Violation("data.pixels", "says how images are scaled, and the data is not images; leave it out")
    elif data.pixels == "unit" and data.standardize:
        yield Violation("data.pixels", "unit is not possible with data.standardize; leave one of them out")
    if data.validation_fraction and data.HasField("validation"):
        yield Violation("data.validation_fraction", "is the same as data.validation.fraction; leave one of them out")
    for name in HELD_OUT:
        if data.HasField(name):
            yield from _across_held_out(getattr(data, name), f"data.{name}", str(source))


def _across_urls(data: job_pb2.Data | job_pb2.HeldOut, path: str) -> Iterator[Violation]:
    urls = addresses.urls_of(data, path)
    yield from (Violation(field, wrong) for field, url in urls.items() if (wrong := addresses.mistake(url)))
    if len(urls) < len(addresses.named(data, path)):
        problem = "names a URL beside the path of a file; give URLs, or paths, alone"
        yield Violation(f"{path}.{data.WhichOneof('source')}", problem)
    if data.sha256:
        yield Violation(f"{path}.sha256", "is that of an uploaded file, and the data is at a URL; leave it out")


def _across_held_out(held_out: job_pb2.HeldOut, path: str, of_job: str) -> Iterator[Violation]:
    by = held_out.WhichOneof("by")
    if source := held_out.WhichOneof("source"):
        wanted = "npy" if of_job == "npy" else "file"
        if held_out.HasField("fraction") or by:
            yield Violation(f"{path}.{by or 'fraction'}", "is not possible with a file of its own; leave one of them out")
        if of_job not in files(job_pb2.Data, "source"):
            yield Violation(f"{path}.{source}", "is possible only where the job's data is a file too")
        elif source != wanted:
            yield Violation(f"{path}.{source}", f"is not possible with data.{of_job}; write {path}.{wanted}")
        elif not getattr(held_out, source):
            yield Violation(f"{path}.{source}", "must not be empty")
        elif addresses.urls_of(held_out, path):
            yield from _across_urls(held_out, path)
        elif not held_out.sha256:
            yield Violation(f"{path}.{source}", f"upload the file first (UploadData) and give its SHA-256 in {path}.sha256")
    elif not held_out.HasField("fraction"):
        yield Violation(path, "one of these must be given: fraction, file")


def _across_initial(initial: job_pb2.Initial) -> Iterator[Violation]:
    source = initial.WhichOneof("source")
    if source and not getattr(initial, source):
        yield Violation(f"model.initial.{source}", "must not be empty")
    elif source == "file" and not initial.sha256:
        yield Violation("model.initial.file", "upload the file first (UploadData) and give its SHA-256 in model.initial.sha256")
    elif source == "job" and initial.sha256:
        yield Violation("model.initial.sha256", "is that of an uploaded file, and the parameters are a job's; leave it out")
