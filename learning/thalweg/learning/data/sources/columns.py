"""Which columns of a table are features and which is the target: by name where there are names."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.data.access import Access
from thalweg.learning.data.errors import DataError, listed
from thalweg.learning.data.matching import by_name, suggestion
from thalweg.learning.data.memory import check_memory
from thalweg.learning.data.rows import Indices, Mapped, Rows
from thalweg.learning.data.sources.files import SourceFile, source_files
from thalweg.learning.data.sources.text_tables.reading import Read, TextTable, read_files
from thalweg.learning.data.sources.text_tables.words import JSON_LINES, TO_PREDICT, TO_TRAIN, told_by, types_by
from thalweg.learning.data.tables import ColumnType, Table
from thalweg.v1 import job_pb2

# Fields of a job's data that say how a table's columns are used.
_OF_TABLES = ("targets", "features", "ignore", "missing", "columns")


class Source(NamedTuple):
    """Samples `x` and targets `y` as they are in a source, and the names of the features and of the target, if it has names.

    Where samples have several inputs, `inputs` are those by name, and `x` is one of them. Targets that are labels may have names:
    `classes`. `divisor` is what the model gets the numbers of `x` divided by, if it is not 0.
    """

    x: Rows
    y: Rows
    columns: tuple[str, ...] = ()
    target: str = ""
    inputs: Mapping[str, Rows] = MappingProxyType({})
    classes: tuple[str, ...] = ()
    divisor: float = 0.0


class Found(NamedTuple):
    """Samples to predict from, as they are in a file, and a notice for the user about how they were read, if there is one."""

    x: NDArray[Any]
    notice: str = ""


def source(data: job_pb2.Data, access: Access) -> Source | Table:
    """The features and the target of a job's CSV file if all are numbers, or else the table.

    It is the table, too, if the job says how columns are used. Raises DataError if it cannot be read.
    """
    found = text_table(data, access)
    return to_train(found, data.csv, data.target) if is_plain(data, found.table) else found.table


def text_table(data: job_pb2.Data, access: Access) -> Read:
    """The table in a job's CSV file, or in several. Raises DataError if it cannot be read."""
    return read_files(csv_files(data, access), TO_TRAIN, data.csv, told_by(data), access, data.sha256)


def csv_files(data: job_pb2.Data, access: Access) -> list[SourceFile]:
    """A job's CSV file, or those of its folder."""
    return source_files(access, "data.csv", data.csv, data.sha256)


def json_lines(data: job_pb2.Data, access: Access) -> Table:
    """The table in a job's file of JSON lines, or in several. Raises DataError if it cannot be read."""
    words, told = TO_TRAIN._replace(field="data.json_lines"), JSON_LINES._replace(types=types_by(data))
    files = source_files(access, "data.json_lines", data.json_lines, data.sha256)
    return read_files(files, words, data.json_lines, told, access, data.sha256).table


def asked(data: job_pb2.Data) -> list[str]:
    """The fields that say how a table's columns are used, of those that are given."""
    return [field.name for field, _ in data.ListFields() if field.name in _OF_TABLES]


def is_plain(data: job_pb2.Data, table: TextTable) -> bool:
    """Whether a job takes a table of numbers as it is: it does not say how columns are used, and no value is missing."""
    numbers = all(column.type is ColumnType.NUMBER for column in table.columns)
    return numbers and not asked(data) and not any(table.missing.values())


class Numbers:
    """Columns of numbers of a table in which none is missing, in double precision, shape (rows, columns)."""

    def __init__(self, table: Table, names: Sequence[str]) -> None:
        self._table = table
        self._names = names
        self.dtype = np.dtype(np.float64)
        self.shape: tuple[int, ...] = (len(table), len(names))

    def __len__(self) -> int:
        """The number of rows."""
        return self.shape[0]

    def __getitem__(self, indices: Indices) -> NDArray[Any]:
        """The rows at indices."""
        taken = self._table.take(indices, self._names)
        rows = np.empty((len(taken[self._names[0]].values), len(self._names)))
        for position, name in enumerate(self._names):
            rows[:, position] = taken[name].values
        return rows


def to_train(found: Read, name: str, target: str) -> Source:
    """The column called `target`, the last one if that is empty, as targets, and the others as features.

    Raises DataError, which calls the file `name`, if there are none.
    """
    names = [column.name for column in found.table.columns]
    if len(names) < 2:
        delimiters = "commas, semicolons, tabs or vertical bars"
        raise DataError(f"data.csv: {name!r} has one column; there must be at least two, separated by {delimiters}")
    if not len(found.table):
        raise DataError(f"data.csv: {name!r} has no rows after its column names")
    if target and not found.named:
        raise DataError(
            f"data.target: {name!r} has no column names (data.header = false); leave data.target out to use the last column"
        )
    if target and target not in names:
        hint = suggestion(target, names)
        raise DataError(f"data.target: {name!r} has no column {target!r}{hint}; it has {listed(names)}")
    target = target or names[-1]
    features = [each for each in names if each != target]
    y = Numbers(found.table, [target])
    return Source(
        Numbers(found.table, features),
        Mapped(y, lambda rows: rows.reshape(-1), (), y.dtype),
        tuple(features) if found.named else (),
        target if found.named else "",
    )


def to_predict(found: Read, name: str, preprocessing: job_pb2.Preprocessing, target: str, features: int) -> Found:
    """The features of a table, in the model's order. A column of targets is left out.

    Where the names of the features are not known, columns are taken in their order; `target` is then the target's name in
    the job, and `features` the number of features, -1 if that is unknown. Raises DataError, which calls the file `name`, if
    columns are missing or unknown.
    """
    subject = f"{TO_PREDICT.field}: {name!r}"
    columns = [column.name for column in found.table.columns]
    names = columns if found.named else []
    wanted, width = tuple(preprocessing.columns), len(columns)
    check_memory(subject, 8 * width * len(found.table))
    values = Numbers(found.table, columns)[:]
    if wanted and names:
        return Found(values[:, by_name(names, subject, wanted, {preprocessing.target})])
    if wanted and width != len(wanted):
        problem = f"has {width} columns without names; the job was trained on {len(wanted)}: {listed(wanted)}"
        raise DataError(f"{subject} {problem}")
    left_out = -1
    if target in names:
        left_out = names.index(target)
    elif width == features + 1:
        left_out = width - 1
    notices = []
    if names:
        notices.append("the job has no column names, so the columns were used in their order")
    elif wanted:
        notices.append(f"the columns were assumed to be in the order of the training data: {listed(wanted)}")
    if left_out == width - 1 and features >= 0:
        notices.append("the last column was left out as the target")
    if left_out >= 0:
        values = np.delete(values, left_out, axis=1)
    return Found(values, f"{name}: {', and '.join(notices)}" if notices else "")
