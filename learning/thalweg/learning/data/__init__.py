"""What a model learns from: loaded, checked, prepared and split, as a pure function of the job and its file."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.batch import INPUT, TARGET, Schema
from thalweg.learning.data.access import Access, Fetch, Temporary
from thalweg.learning.data.checks import check_numbers, check_prepared
from thalweg.learning.data.errors import DataError, MemoryLackError, listed
from thalweg.learning.data.memory import is_held
from thalweg.learning.data.order import keeps_permutations
from thalweg.learning.data.preparation import (
    as_targets,
    own_rows,
    prepare,
    prepare_table,
    prepared_rows,
    preprocess,
    split,
    standardization,
    tabular,
)
from thalweg.learning.data.remote.located import located
from thalweg.learning.data.rows import Positions, Rows, Selected
from thalweg.learning.data.samples import ALL, Arrays, Samples, held, sample_bytes
from thalweg.learning.data.sources import SOURCES, columnar_rows, columns, is_columnar, npz
from thalweg.learning.data.sources.columns import Found, Source
from thalweg.learning.data.sources.text_tables import reading as text_tables
from thalweg.learning.data.sources.text_tables.words import JSON_LINES, TO_PREDICT, told_by
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
    "read_samples",
]


# Endings of names of files of JSON lines.
_JSON_LINES = frozenset({".jsonl", ".ndjson"})


class Dataset(NamedTuple):
    """Samples to learn from and to validate with, prepared as the model gets them.

    A job's have an input `x`, numbers of the job's dtype, or integers if those of the source are not standardized, and a target
    `y`: a label, int64, or numbers of the job's dtype. Other data sets may have several inputs and targets by name.
    """

    train: Samples
    validation: Samples
    preprocessing: job_pb2.Preprocessing

    @property
    def schema(self) -> Schema:
        """The fields of a sample."""
        return self.train.schema


def load(spec: job_pb2.JobSpec, access: Access | Fetch) -> Dataset:
    """The data of a job whose specification has its defaults filled in.

    Uploads may be removed afterwards: they are kept open as long as they are read from. All samples are read several times, block
    by block. Raises DataError if the data is not right.
    """
    spec, given, fingerprint = _located(spec, access)
    dataset = _load(spec, given)
    dataset.preprocessing.fingerprint = fingerprint
    return dataset


def _load(spec: job_pb2.JobSpec, access: Access) -> Dataset:
    """The same, of data that is not at URLs."""
    data, dtype = spec.data, np.dtype(spec.model.dtype)
    field = f"data.{data.WhichOneof('source')}"
    source = _source(data, access)
    if not isinstance(source, Source):
        return _load_table(spec, source, access)
    inputs, y = source.inputs or {INPUT: source.x}, source.y
    check(field, inputs, y)
    kept = spec.model.WhichOneof("kind") is not None
    targets = as_targets(field, y, spec.model.loss, data.one_hot, dtype, kept=kept)
    train, validation = split(spec.seed, len(y), data.validation_fraction, data.order)
    preprocessing = job_pb2.Preprocessing(columns=source.columns, target=source.target)
    if data.standardize:
        if source.inputs:
            several = listed(list(inputs))
            raise DataError(f"data.standardize: the samples have several inputs, {several}; standardize them in the data set")
        with np.errstate(over="ignore", invalid="ignore"):
            statistics = standardization(Selected(source.x, train), whole=keeps_permutations(data.order, len(y)))
        if not np.isfinite(statistics.scale).all():
            raise DataError(f"{field}: x holds numbers that are too large to be standardized; scale them, or remove them")
        preprocessing.MergeFrom(statistics)
    fields = {name: prepared_rows(preprocessing, x, dtype) for name, x in inputs.items()} | {TARGET: targets}
    if not source.inputs:
        preprocessing.shape.extend(source.x.shape[1:])
        preprocessing.dtype = fields[INPUT].dtype.name
    for name in inputs:
        check_prepared(f"{field}: {name}", fields[name])
    return _parts(fields, train, validation, preprocessing)


def _load_table(spec: job_pb2.JobSpec, given: Table, access: Access) -> Dataset:
    """The data of a job that learns from a table."""
    data, dtype = spec.data, np.dtype(spec.model.dtype)
    found = tabular(spec, given, access)
    kept = spec.model.WhichOneof("kind") is not None
    y = as_targets(f"data.{data.WhichOneof('source')}", found.y, spec.model.loss, data.one_hot, dtype, kept=kept)
    return _parts({INPUT: found.x, TARGET: y}, found.train, found.validation, found.preprocessing)


def _parts(fields: Mapping[str, Rows], train: Positions, validation: Positions, preprocessing: job_pb2.Preprocessing) -> Dataset:
    """The samples of both parts, in memory if there is room."""
    first, second = (Arrays({name: Selected(rows, chosen) for name, rows in fields.items()}) for chosen in (train, validation))
    if is_held(sample_bytes(first.schema) * (len(first) + len(second))):
        first, second = held(first), held(second)
    return Dataset(first, second, preprocessing)


class Pair(NamedTuple):
    """Samples and targets as they are in a source, in memory."""

    x: NDArray[Any]
    y: NDArray[Any]


class Own(NamedTuple):
    """Samples of a job's own, as they are in its source: an array, or rows of a table; and their targets, classes by name."""

    x: NDArray[Any] | Table
    y: NDArray[Any]


def held_out(spec: job_pb2.JobSpec, access: Access | Fetch) -> Own:
    """A job's validation samples; of a job without any, its training samples.

    `spec` has its defaults filled in. Raises DataError if the data cannot be read.
    """
    spec, given, _ = _located(spec, access)
    source = _source(spec.data, given)
    if not isinstance(source, Source):
        return Own(*own_rows(spec, source, given))
    train, validation = split(spec.seed, len(source.x), spec.data.validation_fraction, spec.data.order)
    chosen = (validation if len(validation) else train)[ALL]
    return Own(source.x[chosen], source.y[chosen])


def read(data: job_pb2.Data, access: Access | Fetch) -> Pair:
    """All samples and targets of a source of arrays. Raises DataError if it cannot be read, or is a table."""
    place = located(data, _access(access))
    source = _source(place.data, place.access)
    if not isinstance(source, Source):
        raise DataError(f"data.{data.WhichOneof('source')}: is a table, and becomes arrays only with a job; load the job's data")
    return Pair(source.x[ALL], source.y[ALL])


def _located(spec: job_pb2.JobSpec, access: Access | Fetch) -> tuple[job_pb2.JobSpec, Access, str]:
    """A job whose data is not at URLs, an access to it, and the fingerprint of what was at URLs; empty if nothing was."""
    place = located(spec.data, _access(access))
    if place.data is spec.data:
        return spec, place.access, ""
    changed = job_pb2.JobSpec()
    changed.CopyFrom(spec)
    changed.data.CopyFrom(place.data)
    return changed, place.access, place.fingerprint


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
    types = {column.name: ColumnType(column.type) for column in preprocessing.table}
    types |= dict.fromkeys(preprocessing.columns, ColumnType.NUMBER)
    # What columns hold that are not used does not matter.
    told = (JSON_LINES if is_json else told_by(data, header))._replace(others=ColumnType.TEXT, types=types)
    table, named = text_tables.read(path, words, name, told)
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
