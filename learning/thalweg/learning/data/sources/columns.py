"""Which columns of a table are features and which is the target: by name where there are names."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.data.access import Access
from thalweg.learning.data.errors import DataError, listed
from thalweg.learning.data.matching import by_name, suggestion
from thalweg.learning.data.memory import check_memory
from thalweg.learning.data.rows import Mapped, Rows
from thalweg.learning.data.sources.table import TO_PREDICT, TO_TRAIN, Table, read
from thalweg.v1 import job_pb2


class Source(NamedTuple):
    """Samples `x` and targets `y` as they are in a source, and the names of the features and of the target, if it has names.

    Where samples have several inputs, `inputs` are those by name, and `x` is one of them.
    """

    x: Rows
    y: Rows
    columns: tuple[str, ...] = ()
    target: str = ""
    inputs: Mapping[str, Rows] = MappingProxyType({})


class Found(NamedTuple):
    """Samples to predict from, as they are in a file, and a notice for the user about how they were read, if there is one."""

    x: NDArray[Any]
    notice: str = ""


def source(data: job_pb2.Data, access: Access) -> Source:
    """The features and the target of a job's table. Raises DataError if it cannot be read."""
    return to_train(read(access.upload(data.sha256), TO_TRAIN, data.csv, header_of(data)), data.csv, data.target)


def header_of(data: job_pb2.Data) -> bool | None:
    """Whether a job's table has a line of column names; None if the job does not say."""
    return data.header if data.HasField("header") else None


def to_train(table: Table, name: str, target: str) -> Source:
    """The column called `target`, the last one if that is empty, as targets, and the others as features.

    Raises DataError, which calls the file `name`, if there are none.
    """
    rows, width = table.values.shape
    if width < 2:
        raise DataError(f"data.csv: {name!r} has one column; there must be at least two, separated by commas")
    if not rows:
        raise DataError(f"data.csv: {name!r} has no rows after its column names")
    position = width - 1
    if target:
        if not table.names:
            raise DataError(
                f"data.target: {name!r} has no column names (data.header = false); leave data.target out to use the last column"
            )
        if target not in table.names:
            hint = suggestion(target, table.names)
            raise DataError(f"data.target: {name!r} has no column {target!r}{hint}; it has {listed(table.names)}")
        position = table.names.index(target)
    target = table.names[position] if table.names else ""
    x = Mapped(table.values, lambda cells: np.delete(cells, position, axis=1), (width - 1,), table.values.dtype)
    return Source(x, table.values[:, position], table.names[:position] + table.names[position + 1 :], target)


def to_predict(table: Table, name: str, preprocessing: job_pb2.Preprocessing, target: str, features: int) -> Found:
    """The features of a table, in the model's order. A column of targets is left out.

    Where the names of the features are not known, columns are taken in their order; `target` is then the target's name in
    the job, and `features` the number of features, -1 if that is unknown. Raises DataError, which calls the file `name`, if
    columns are missing or unknown.
    """
    subject = f"{TO_PREDICT.field}: {name!r}"
    wanted, width = tuple(preprocessing.columns), table.values.shape[1]
    check_memory(subject, table.values.nbytes)
    if wanted and table.names:
        return Found(table.values[:, by_name(table.names, subject, wanted, {preprocessing.target})])
    if wanted and width != len(wanted):
        problem = f"has {width} columns without names; the job was trained on {len(wanted)}: {listed(wanted)}"
        raise DataError(f"{subject} {problem}")
    left_out = -1
    if target in table.names:
        left_out = table.names.index(target)
    elif width == features + 1:
        left_out = width - 1
    notices = []
    if table.names:
        notices.append("the job has no column names, so the columns were used in their order")
    elif wanted:
        notices.append(f"the columns were assumed to be in the order of the training data: {listed(wanted)}")
    if left_out == width - 1 and features >= 0:
        notices.append("the last column was left out as the target")
    values = table.values if left_out < 0 else np.delete(table.values, left_out, axis=1)
    return Found(values, f"{name}: {', and '.join(notices)}" if notices else "")
