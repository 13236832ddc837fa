"""What is in a job's data: the columns of a table, or arrays, and what training makes of them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from thalweg.learning.data.access import Access
from thalweg.learning.data.checks import check_numbers
from thalweg.learning.data.errors import DataError
from thalweg.learning.data.preparation.features import EachRow
from thalweg.learning.data.preparation.plans import MOST_FREQUENT, Plan, Planned, plan
from thalweg.learning.data.preparation.recipes import prepared_column, width
from thalweg.learning.data.preparation.summaries import MAX_CATEGORIES, Summary, summaries
from thalweg.learning.data.remote.located import located
from thalweg.learning.data.rows import Rows, row_blocks
from thalweg.learning.data.sources import SOURCES, columns
from thalweg.learning.data.sources.text_tables.reading import Written, written
from thalweg.learning.data.sources.text_tables.words import TO_TRAIN, told_by
from thalweg.learning.data.tables import Column, ColumnType, Table
from thalweg.v1 import job_pb2

# Whole numbers from 0 up are taken for the labels of at most this number of classes.
_MAX_LABELS = 100
# Labels occur several times each, on average.
_ROWS_PER_LABEL = 3

Value = int | float | str


class ColumnFound(NamedTuple):
    """A column of a table, over all rows.

    `low` and `high` are those of numbers, and of times in ISO 8601. `distinct` values and the `most_frequent` one are those of
    text and truth values; None, if there are more than are counted. `prepare` is how training prepares it by default, and
    `features` what it becomes then; `refused` says why training refuses it. Other columns than features have none of these. Of a
    column that is not read, `missing` is None.
    """

    name: str
    type: str
    dtype: str
    missing: int | None
    low: Value | None = None
    high: Value | None = None
    distinct: int | None = None
    most_frequent: str | None = None
    prepare: str = ""
    features: int = 0
    refused: str = ""


class TargetFound(NamedTuple):
    """A target. `classes` has the number of samples of each, by label or name, in order; it is empty where they are numbers."""

    name: str
    classes: Mapping[str, int]
    values: int
    missing: int
    refused: str = ""


class TableFound(NamedTuple):
    """A table, and how it is written, if it is a CSV file."""

    rows: int
    columns: tuple[ColumnFound, ...]
    target: TargetFound
    written: Written | None


class ArrayFound(NamedTuple):
    """An array of finite numbers, samples first. `low` and `high` are None if it is empty."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    low: Value | None
    high: Value | None


class ArraysFound(NamedTuple):
    """Samples and targets."""

    arrays: tuple[ArrayFound, ...]
    target: TargetFound


def inspect(data: job_pb2.Data, access: Access) -> TableFound | ArraysFound:
    """What is in a job's data. It is read once, block by block. Raises DataError if training would, whatever the model."""
    data, access, *_ = located(data, access)
    kind, dialect = str(data.WhichOneof("source")), None
    if kind == "csv":
        found = columns.text_table(data, access)
        if columns.is_plain(data, found.table):
            columns.to_train(found, data.csv, data.target)
        # Of several files, the first one.
        first, *_ = columns.csv_files(data, access)
        dialect = written(first.path, TO_TRAIN, data.csv, told_by(data))
        return _table(data, found.table, dialect)
    given = SOURCES[kind](data, access)
    if not isinstance(given, columns.Source):
        return _table(data, given, dialect)
    if len(given.x) != len(given.y):
        raise DataError(f"data.{kind}: x has {len(given.x)} samples but y has {len(given.y)}; the counts must match")
    arrays = array(f"data.{kind}: x", given.x, "x"), array(f"data.{kind}: y", given.y, "y")
    return ArraysFound(arrays, _labels(given.y))


def array(subject: str, rows: Rows, name: str) -> ArrayFound:
    """What is in an array. Raises DataError, whose message begins with `subject`, if it does not hold finite numbers."""
    check_numbers(subject, rows)
    low, high = None, None
    for block in row_blocks(rows) if np.prod(rows.shape) else ():
        values = rows[block]
        least, most = values.min().item(), values.max().item()
        low, high = least if low is None else min(low, least), most if high is None else max(high, most)
    return ArrayFound(name, tuple(rows.shape), str(rows.dtype), low, high)


def _labels(y: Rows) -> TargetFound:
    """Targets in an array: labels, if there is one for each sample."""
    counts: dict[float, int] = {}
    if y.shape[1:] in ((), (1,)):
        for block in row_blocks(y):
            for value, count in zip(*np.unique(y[block], return_counts=True), strict=True):
                counts[value.item()] = counts.get(value.item(), 0) + int(count)
            if len(counts) > _MAX_LABELS:
                break
    texts = {str(int(value)) if value == int(value) else str(value): count for value, count in counts.items()}
    values = int(np.prod(y.shape[1:]))
    return TargetFound("y", _classes(texts, len(y)), values, 0)


def _classes(counts: Mapping[str, int], rows: int) -> dict[str, int]:
    """The classes that numbers are labels of: whole ones from 0 up, all of which occur. Empty if they are none."""
    labels = [str(label) for label in range(len(counts))]
    is_labels = 2 <= len(counts) <= min(_MAX_LABELS, rows // _ROWS_PER_LABEL) and counts.keys() == {*labels}
    return {label: counts[label] for label in labels} if is_labels else {}


def _table(data: job_pb2.Data, table: Table, dialect: Written | None) -> TableFound:
    if not len(table) or not table.columns:
        raise DataError(f"data.{data.WhichOneof('source')}: {table.name!r} has no {'rows' if table.columns else 'columns'}")
    # Lists and structures cannot be read: what is known of them is that.
    unreadable = {column.name for column in table.columns if column.dtype.kind == "O"}
    usable = job_pb2.Data()
    usable.CopyFrom(data)
    target = data.target or table.columns[-1].name
    usable.ignore.extend(sorted(unreadable - {*data.ignore, *data.features, *data.targets, target}))
    planned = plan(usable, table.columns, table.name)
    counted = [_counted(column, planned) for column in planned.columns]
    summed = summaries(table, EachRow(len(table)), counted, medians=False)
    by_name = {column.name: column for column in planned.features}
    found = []
    for column in table.columns:
        if column.name in summed:
            found.append(_column(column, summed[column.name], by_name.get(column.name), data))
        else:
            why = "lists, structures and bytes cannot be features" if column.name in unreadable else ""
            found.append(ColumnFound(column.name, "other" if why else column.type.value, str(column.dtype), None, refused=why))
    return TableFound(len(table), tuple(found), _target(planned, summed), dialect)


def _counted(column: Planned, planned: Plan) -> Planned:
    """The column, planned so that its distinct values are counted where these are shown: of targets, and of truth values."""
    shown = column in planned.targets or column.type is ColumnType.BOOLEAN
    return column._replace(missing=MOST_FREQUENT) if shown else column


def _column(column: Column, summary: Summary, planned: Planned | None, data: job_pb2.Data) -> ColumnFound:
    kind = summary.column.type
    found = ColumnFound(column.name, kind.value, str(column.dtype), summary.missing)
    if (summary.present and kind in (ColumnType.TEXT, ColumnType.BOOLEAN)) or summary.column.categorical:
        known = bool(summary.counts) and not summary.overflow
        found = found._replace(
            distinct=len(summary.counts) if known else None, most_frequent=summary.most_frequent if known else None
        )
    elif summary.present:
        low, high = (_value(column, kind, number) for number in (summary.low, summary.high))
        found = found._replace(low=low, high=high)
    if planned is None:
        return found
    try:
        asked = column.name in data.columns and bool(data.columns[column.name].prepare)
        return found._replace(prepare=planned.prepare, features=width(prepared_column(planned, summary, asked)))
    except DataError as error:
        return found._replace(prepare=planned.prepare, refused=str(error).partition(": ")[2])


def _value(column: Column, kind: ColumnType, number: float) -> Value:
    if kind is ColumnType.TIME:
        return str(np.datetime64(round(number * 1e6), "us").astype("datetime64[us]").item().isoformat())
    return int(number) if column.dtype.kind in "iu" else number


def _target(planned: Plan, summed: Mapping[str, Summary]) -> TargetFound:
    name, targets = ", ".join(target.name for target in planned.targets), planned.targets
    missing = max(summed[target.name].missing for target in targets)
    if len(targets) > 1:
        return TargetFound(name, {}, len(targets), missing)
    (target,) = targets
    summary = summed[target.name]
    if not summary.present:
        return TargetFound(name, {}, 1, missing, "no row has a target")
    if target.type is ColumnType.NUMBER:
        return TargetFound(name, _classes(summary.counts, summary.present), 1, missing)
    if target.type is ColumnType.BOOLEAN:
        return TargetFound(name, {text: summary.counts.get(text, 0) for text in ("false", "true")}, 1, missing)
    if summary.overflow:
        return TargetFound(name, {}, 1, missing, f"there are more than {MAX_CATEGORIES:,} different texts; name another target")
    classes = {text: summary.counts[text] for text in sorted(summary.counts)}
    return TargetFound(name, classes, 1, missing, "" if len(classes) > 1 else "there is one class; at least two are needed")
