"""What a model learns from: loaded, checked, prepared and split, as a pure function of the job and its file."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.contract.rules import HELD_OUT
from thalweg.learning.batch import INPUT, TARGET, Schema
from thalweg.learning.data.access import Access, Fetch, Temporary
from thalweg.learning.data.checks import check_numbers, check_prepared
from thalweg.learning.data.errors import DataError, MemoryLackError, listed
from thalweg.learning.data.groups import Groups, cut
from thalweg.learning.data.memory import MAX_GROUP, is_held, is_small
from thalweg.learning.data.order import keeps_permutations
from thalweg.learning.data.preparation import (
    Parts,
    Values,
    as_targets,
    ignoring_less,
    own_rows,
    parts,
    prepare,
    prepare_table,
    prepared_rows,
    preprocess,
    standardization,
    tabular,
    tabular_of_own_file,
)
from thalweg.learning.data.remote.located import Located, located
from thalweg.learning.data.rows import Indices, Mapped, Positions, Rows, Selected
from thalweg.learning.data.samples import ALL, Arrays, Samples, held, sample_bytes
from thalweg.learning.data.sources import COLUMNAR, SOURCES, columnar_rows, columnar_table, columns, is_columnar, npz
from thalweg.learning.data.sources.columns import Found, Source
from thalweg.learning.data.sources.files import SourceFile, source_files
from thalweg.learning.data.sources.text_tables import reading as text_tables
from thalweg.learning.data.sources.text_tables.words import JSON_LINES, TO_PREDICT, told_by
from thalweg.learning.data.stored import content_of, stored
from thalweg.learning.data.tables import ColumnType, Table
from thalweg.v1 import job_pb2

__all__ = [
    "Access",
    "Arrays",
    "DataError",
    "Dataset",
    "Found",
    "MemoryLackError",
    "Samples",
    "Source",
    "Temporary",
    "check",
    "held_out",
    "load",
    "prepare",
    "prepare_table",
    "preprocess",
    "read",
    "read_rows",
    "read_rows_at",
    "read_samples",
]


# Endings of names of files of JSON lines.
_JSON_LINES = frozenset({".jsonl", ".ndjson"})


class Dataset(NamedTuple):
    """Samples to learn from, to validate and to test with, prepared as the model gets them.

    A job's have an input `x`, numbers of the job's dtype, or integers if those of the source are not standardized, and a target
    `y`: a label, int64, or numbers of the job's dtype. Other data sets may have several inputs and targets by name.
    """

    train: Samples
    validation: Samples
    test: Samples
    preprocessing: job_pb2.Preprocessing
    # For the user, about the samples.
    notices: tuple[str, ...] = ()

    @property
    def schema(self) -> Schema:
        """The fields of a sample."""
        return self.train.schema


def load(spec: job_pb2.JobSpec, access: Access | Fetch) -> Dataset:
    """The data of a job whose specification has its defaults filled in.

    Uploads may be removed afterwards: they are kept open as long as they are read from. All samples are read several times, block
    by block. Raises DataError if the data is not right.
    """
    spec, place = _located(spec, access)
    dataset = _load(spec, place.access)
    dataset.preprocessing.fingerprint = place.fingerprint
    dataset.preprocessing.files.extend(place.files)
    return dataset


def _load(spec: job_pb2.JobSpec, access: Access) -> Dataset:
    """The same, of data that is not at URLs."""
    field = f"data.{spec.data.WhichOneof('source')}"
    source = _source(spec.data, access)
    if not isinstance(source, Source):
        return _load_table(spec, source, access)
    check(field, source.inputs or {INPUT: source.x}, source.y)
    if len(source.classes) == 1:
        raise DataError(f"{field}: has the class {source.classes[0]!r} alone; add the folders of others")
    chosen = _parts_of(spec, source)
    preprocessing = _preprocessing(spec, field, source, chosen.train)
    fields = _prepared(spec, field, source, preprocessing)
    if not source.inputs:
        preprocessing.shape.extend(source.x.shape[1:])
        preprocessing.dtype = fields[INPUT].dtype.name

    def of_own_file(field: str, other: job_pb2.JobSpec) -> Mapping[str, Rows]:
        found = _source(other.data, access)
        if not isinstance(found, Source):
            raise DataError(f"{field}: {found.name!r} {_unlike_numbers(found)}")
        check(field, found.inputs or {INPUT: found.x}, found.y)
        if unknown := sorted({*found.classes} - {*source.classes}):
            raise DataError(f"{field}: has the classes {listed(unknown)}, but the job's data has {listed(source.classes)} alone")
        if found.classes != source.classes:
            labels = np.array([source.classes.index(name) for name in found.classes], np.int64)
            found = found._replace(y=Mapped(found.y, lambda theirs: labels[theirs], (), labels.dtype))
        if found.columns != source.columns:
            problem = f"has the features {listed(found.columns)}, but the job's data has {listed(source.columns)}"
            raise DataError(f"{field}: {problem}")
        if not found.inputs and found.x.shape[1:] != source.x.shape[1:]:
            shape, wanted = found.x.shape[1:], source.x.shape[1:]
            raise DataError(f"{field}: its samples have the shape {shape}, but those of the job's data have {wanted}")
        return _prepared(other, field, found, preprocessing)

    # Other arrays lie in files, or are made by the user's own code.
    content = content_of(spec, len(source.y), source.columns) if source.columns else ""
    return _dataset(spec, fields, chosen, preprocessing, of_own_file, access, content)


def _unlike_numbers(table: Table) -> str:
    """Why a table is not as the job's data, which is arrays, or columns of numbers."""
    other = [
        f"holds {column.type.value} in the column {column.name!r}"
        for column in table.columns
        if column.type is not ColumnType.NUMBER
    ]
    missing: Mapping[str, int] = getattr(table, "missing", {})
    other += [f"lacks {count:,} of the values in the column {name!r}" for name, count in missing.items() if count]
    if not other:
        return "is a table, but the job's data is not one"
    return f"{other[0]}, but the job's data is numbers alone, of which none is missing; correct it, or give data.missing"


def _parts_of(spec: job_pb2.JobSpec, source: Source) -> Parts:
    return parts(spec.data, spec.seed, len(source.y), lambda name: _column(spec.data, source, name))


def _column(data: job_pb2.Data, source: Source, name: str) -> Values:
    """The targets, or a column of numbers, by which samples are held out. Raises DataError if there are none of this name."""
    target = source.target or TARGET
    if name in (target, TARGET) and source.y.shape[1:] in ((), (1,)):
        return Values(source.y[ALL].reshape(-1), source.classes)
    if name in source.columns:
        return Values(source.x[ALL][:, source.columns.index(name)])
    known = listed([*source.columns, target])
    raise DataError(
        f"data: samples are held out by {name!r}, which is no column of data.{data.WhichOneof('source')}; it has {known}"
    )


def _preprocessing(spec: job_pb2.JobSpec, field: str, source: Source, train: Positions) -> job_pb2.Preprocessing:
    """How samples are prepared: fitted to those to learn from."""
    preprocessing = job_pb2.Preprocessing(columns=source.columns, target=source.target, divisor=source.divisor)
    if source.classes:
        preprocessing.targets.add(name=source.target or TARGET, classes=source.classes)
    if not spec.data.standardize:
        return preprocessing
    if source.inputs:
        several = listed(list(source.inputs))
        raise DataError(f"data.standardize: the samples have several inputs, {several}; standardize them in the data set")
    with np.errstate(over="ignore", invalid="ignore"):
        statistics = standardization(Selected(source.x, train), whole=keeps_permutations(spec.data.order, len(source.y)))
    if not np.isfinite(statistics.scale).all():
        raise DataError(f"{field}: x holds numbers that are too large to be standardized; scale them, or remove them")
    preprocessing.MergeFrom(statistics)
    return preprocessing


def _prepared(spec: job_pb2.JobSpec, field: str, source: Source, preprocessing: job_pb2.Preprocessing) -> dict[str, Rows]:
    """The fields of all samples of a source of arrays, prepared when they are taken."""
    dtype = np.dtype(spec.model.dtype)
    inputs = source.inputs or {INPUT: source.x}
    targets = _as_targets(spec, field, source.y)
    fields = {name: prepared_rows(preprocessing, x, dtype) for name, x in inputs.items()}
    for name, rows in fields.items():
        check_prepared(f"{field}: {name}", rows)
    return fields | {TARGET: targets}


def _as_targets(spec: job_pb2.JobSpec, field: str, y: Rows) -> Rows:
    kept = spec.model.WhichOneof("kind") is not None
    return as_targets(field, y, spec.model.loss, spec.data.one_hot, np.dtype(spec.model.dtype), kept=kept)


def _load_table(spec: job_pb2.JobSpec, given: Table, access: Access) -> Dataset:
    """The data of a job that learns from a table."""
    found = tabular(spec, given, access)
    y = _as_targets(spec, f"data.{spec.data.WhichOneof('source')}", found.y)

    def of_own_file(field: str, other: job_pb2.JobSpec) -> Mapping[str, Rows]:
        table = _source(other.data, access)
        if isinstance(table, Source):
            raise DataError(f"{field}: is no table, but the job's data is one")
        rows = tabular_of_own_file(other, table, access, found, field)
        return {INPUT: rows.x, TARGET: _as_targets(other, field, rows.y)}

    chosen = Parts(found.train, found.validation, found.test, found.notices)
    # Who says how samples are ordered means all of them.
    groups = found.groups if spec.data.order == "auto" else ()
    return _dataset(spec, {INPUT: found.x, TARGET: y}, chosen, found.preprocessing, of_own_file, access, found.content, groups)


def _dataset(
    spec: job_pb2.JobSpec,
    fields: Mapping[str, Rows],
    chosen: Parts,
    preprocessing: job_pb2.Preprocessing,
    of_own_file: Callable[[str, job_pb2.JobSpec], Mapping[str, Rows]],
    access: Access,
    content: str,
    groups: Sequence[int] = (),
) -> Dataset:
    """The samples of all parts, in memory if there is room. `of_own_file` gives those of another file, with a field's name.

    Many samples are learned from by groups, of which `groups` are the ends, if there are any. Many that `content` identifies are
    prepared once on this node.
    """
    found = [Arrays({name: Selected(rows, indices) for name, rows in fields.items()}) for indices in chosen.indices]
    # Of those that have a file of their own.
    fields_of = [""] * len(found)
    for position, (name, held_out) in enumerate(_held_out(spec.data), 1):
        if held_out.WhichOneof("source"):
            fields_of[position] = f"data.{name}.{held_out.WhichOneof('source')}"
            with _about(fields_of[position]):
                found[position] = Arrays(of_own_file(fields_of[position], _other_spec(spec, held_out)))
                _check_alike(fields_of[position], found[position].schema, found[0].schema)
    needed = sum(sample_bytes(samples.schema) * len(samples) for samples in found)
    if is_held(needed):
        for position, samples in enumerate(found):
            with _about(fields_of[position]):
                found[position] = held(samples)
    else:
        found = stored(content, found, access)
    train, validation, test = found
    # Not by the memory of this machine: the order of samples depends on it.
    if groups and not is_small(needed):
        ends = cut(groups, max(1, MAX_GROUP // sample_bytes(train.schema)))
        return Dataset(Groups(train.schema, ends, train.take), validation, test, preprocessing, chosen.notices)
    return Dataset(train, validation, test, preprocessing, chosen.notices)


@contextmanager
def _about(field: str) -> Iterator[None]:
    """Around what is about samples in a file of their own: errors begin with its field, in place of that of the job's data."""
    try:
        yield
    except DataError as error:
        if field and not str(error).startswith(f"{field}: "):
            about, _, problem = str(error).partition(": ")
            error.args = (f"{field}: {problem if about.startswith('data') else error}",)
        raise


def _held_out(data: job_pb2.Data) -> list[tuple[str, job_pb2.HeldOut]]:
    return [(name, getattr(data, name)) for name in HELD_OUT]


def _other_spec(spec: job_pb2.JobSpec, held_out: job_pb2.HeldOut) -> job_pb2.JobSpec:
    """The job, with samples of a file of their own as its data, none of which are held out."""
    other = job_pb2.JobSpec()
    other.CopyFrom(spec)
    for name in (*HELD_OUT, "validation_fraction"):
        other.data.ClearField(name)
    if held_out.WhichOneof("source") == "npy":
        other.data.npy.CopyFrom(held_out.npy)
    else:
        setattr(other.data, str(spec.data.WhichOneof("source")), held_out.file)
    other.data.sha256 = held_out.sha256
    return other


def _check_alike(field: str, found: Schema, wanted: Schema) -> None:
    """Raises DataError if the samples of a file of its own are not like those of the job's data."""
    for name in wanted.keys() | found.keys():
        if found.get(name) != wanted.get(name):
            theirs, ours = (_of_field(schema, name) for schema in (found, wanted))
            raise DataError(f"{field}: {name} is {theirs}, but in the job's data it is {ours}")


def _of_field(schema: Schema, name: str) -> str:
    return f"{schema[name].dtype} of shape {schema[name].shape}" if name in schema else "missing"


class Pair(NamedTuple):
    """Samples and targets as they are in a source, in memory."""

    x: NDArray[Any]
    y: NDArray[Any]


class Own(NamedTuple):
    """Samples of a job's own, as they are in its source: an array, or rows of a table; and their targets, classes by name."""

    x: NDArray[Any] | Table
    y: NDArray[Any]


def held_out(spec: job_pb2.JobSpec, access: Access | Fetch) -> Own:
    """A job's validation samples; of a job without any, its test samples, or else its training samples.

    `spec` has its defaults filled in. Raises DataError if the data cannot be read.
    """
    spec, place = _located(spec, access)
    given = place.access
    for _, wanted in _held_out(spec.data):
        if wanted.WhichOneof("source"):
            return _all_of(_other_spec(spec, wanted), given)
        if wanted.fraction or spec.data.validation_fraction:
            break
    source = _source(spec.data, given)
    if not isinstance(source, Source):
        return Own(*own_rows(spec, source, given))
    return _own(source, _parts_of(spec, source).shown[ALL])


def _all_of(spec: job_pb2.JobSpec, access: Access) -> Own:
    source = _source(spec.data, access)
    if isinstance(source, Source):
        return _own(source, ALL)
    return Own(*own_rows(ignoring_less(spec, source), source, access))


def _own(source: Source, chosen: Indices) -> Own:
    y = source.y[chosen]
    return Own(source.x[chosen], np.array(source.classes)[y] if source.classes else y)


def read(data: job_pb2.Data, access: Access | Fetch) -> Pair:
    """All samples and targets of a source of arrays. Raises DataError if it cannot be read, or is a table."""
    place = located(data, _access(access))
    source = _source(place.data, place.access)
    if not isinstance(source, Source):
        raise DataError(f"data.{data.WhichOneof('source')}: is a table, and becomes arrays only with a job; load the job's data")
    return Pair(source.x[ALL], source.y[ALL])


def _located(spec: job_pb2.JobSpec, access: Access | Fetch) -> tuple[job_pb2.JobSpec, Located]:
    """A job whose data is not at URLs, and where it is."""
    place = located(spec.data, _access(access))
    if place.data is spec.data:
        return spec, place
    changed = job_pb2.JobSpec()
    changed.CopyFrom(spec)
    changed.data.CopyFrom(place.data)
    return changed, place


def _access(access: Access | Fetch) -> Access:
    # A function that gives uploads is enough where nothing need be kept for others.
    return Temporary(access) if callable(access) else access


def _source(data: job_pb2.Data, access: Access) -> Source | Table:
    kind = str(data.WhichOneof("source"))
    found = SOURCES[kind](data, access)
    if isinstance(found, Source) and (asked := columns.asked(data)):
        raise DataError(f"data.{asked[0]}: is for tables, and data.{kind} is not one; leave it out")
    return found


def read_samples(
    path: Path, data: job_pb2.Data, preprocessing: job_pb2.Preprocessing, features: int, header: bool | None = None
) -> Found:
    """Samples to predict from, read from a .csv, .npy or .npz file, for a job that was trained on `data`.

    `features` is the number of features of a sample, -1 if that is unknown; `header` says whether a table has a line of column
    names, if that differs from `data.header`. Raises DataError, whose message begins with "INPUT", or OSError.
    """
    words, name = TO_PREDICT, path.name
    if path.suffix.lower() != ".csv" and npz.is_numpys(path):
        return Found(npz.load_samples(path, words.field, name))
    if path.suffix.lower() in (".npy", ".npz"):
        raise DataError(f"{words.field}: {name!r} is not a NumPy file; write one with numpy.save")
    told = told_by(data, header)._replace(others=ColumnType.NUMBER, complete=True, types={})
    found = text_tables.read(path, words, name, told)
    return columns.to_predict(found, name, preprocessing, data.target, features)


def read_rows(path: Path, data: job_pb2.Data, preprocessing: job_pb2.Preprocessing, header: bool | None = None) -> Table | None:
    """The rows of a .csv, .jsonl or .parquet file, or one of Arrow's, to predict from, as they are, for `prepare_table`.

    None if the job makes no table of what it reads, or if the file is an array. Raises as `read_samples` does.
    """
    words, name = TO_PREDICT, path.name
    if is_columnar(path) and (preprocessing.table or preprocessing.columns):
        return columnar_rows(path, words.field)
    is_json = not _JSON_LINES.isdisjoint(map(str.lower, path.suffixes)) and bool(preprocessing.table or preprocessing.columns)
    as_table = preprocessing.table or preprocessing.targets or columns.asked(data) or is_json
    if not as_table or (path.suffix.lower() != ".csv" and npz.is_numpys(path)):
        return None
    return _text_rows([SourceFile(name, path)], name, data, preprocessing, header, is_json=is_json)


def read_rows_at(
    data: job_pb2.Data, access: Access | Fetch, preprocessing: job_pb2.Preprocessing, header: bool | None = None
) -> Table:
    """The rows of a folder, or of what is at a URL, to predict from. `data` is the job's, with that in place of its own.

    Raises DataError and NodeError, whose messages begin with "INPUT" or the field of the data, and OSError.
    """
    place = located(data, _access(access))
    kind = str(data.WhichOneof("source"))
    given = str(getattr(place.data, kind))
    files = source_files(place.access, TO_PREDICT.field, given, place.data.sha256)
    if kind in COLUMNAR:
        return columnar_table(kind, files, given, TO_PREDICT.field)
    return _text_rows(files, given, data, preprocessing, header, is_json=kind == "json_lines")


def _text_rows(
    files: Sequence[SourceFile],
    name: str,
    data: job_pb2.Data,
    preprocessing: job_pb2.Preprocessing,
    header: bool | None,
    *,
    is_json: bool,
) -> Table:
    words = TO_PREDICT
    types = {column.name: ColumnType(column.type) for column in preprocessing.table}
    types |= dict.fromkeys(preprocessing.columns, ColumnType.NUMBER)
    # What columns hold that are not used does not matter.
    told = (JSON_LINES if is_json else told_by(data, header))._replace(others=ColumnType.TEXT, types=types)
    table, named = text_tables.read_files(files, words, name, told)
    if not named and not {*types} <= {column.name for column in table.columns}:
        raise DataError(f"{words.field}: {name!r} has no line of column names, by which the job finds its columns; add one")
    return table


def check(field: str, inputs: Mapping[str, Rows], y: Rows) -> None:
    """Raises DataError, which begins with the field, if inputs, by name, and their targets are not samples to learn from."""
    for name, values in (*inputs.items(), (TARGET, y)):
        check_numbers(f"{field}: {name}", values)
    for name, x in inputs.items():
        if len(x) != len(y):
            raise DataError(f"{field}: {name} has {len(x)} samples but y has {len(y)}; the counts must match")
        if name == INPUT and len(x.shape) == 1:
            example = "it needs an axis for the features too, as in x.reshape(-1, 1)"
            raise DataError(f"{field}: x has the shape {x.shape}; {example}")
        if len(x) == 0:
            raise DataError(f"{field}: has no samples")
        if math.prod(x.shape[1:]) == 0:
            raise DataError(f"{field}: {name} has the shape {x.shape}: its samples have no features")
