"""Rows that are given for predictions, as a model gets them that was trained on a table."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from thalweg.learning.data.checks import check_prepared
from thalweg.learning.data.errors import DataError, listed
from thalweg.learning.data.frames import is_frame, table_of
from thalweg.learning.data.matching import by_name
from thalweg.learning.data.preparation.features import EachRow, FeatureRows, Strangers
from thalweg.learning.data.preparation.fitting import columns_of
from thalweg.learning.data.preparation.plans import Planned
from thalweg.learning.data.rows import Rows
from thalweg.learning.data.tables import ColumnType, Table
from thalweg.v1 import job_pb2


class Prepared(NamedTuple):
    """Samples as a model gets them, made when they are taken, and notices for the user about them."""

    x: Rows
    notices: tuple[str, ...] = ()


def prepare_table(x: object, preprocessing: job_pb2.Preprocessing, dtype: np.dtype[np.floating]) -> Prepared | None:
    """The rows of a table, or of what `frames.table_of` makes one of; None if `x` is to be taken as an array.

    Columns are matched by name; targets and columns that the job ignores are left out. Where all features are numbers, an array
    with a column for each will do. Raises DataError, whose message begins with "x", if columns are missing or unknown, cells
    cannot be read, or values are missing that the job does not replace; with "INPUT" of rows of a file.
    """
    recipe = columns_of(preprocessing)
    if not recipe:
        return None
    subject = "x:"
    if is_frame(x):
        table: Table = table_of(x, "x", "x")
    elif isinstance(x, Table):
        table, subject = x, f"INPUT: {x.name!r}"
    elif not preprocessing.table:
        return None
    else:
        table = _of_array(x, recipe)
    wanted = [column.name for column in recipe]
    targets = [target.name for target in preprocessing.targets] or [preprocessing.target]
    names = [column.name for column in table.columns]
    # Columns that the job was not to use may be there or not.
    index = [column.name for column in table.columns if column.is_index]
    others = names if preprocessing.others_ignored else [*preprocessing.ignored, *index]
    chosen = by_name(names, subject, wanted, {*targets, *others})
    planned = [
        Planned(column.name, table.columns[position].type, ColumnType(column.type), column.prepare, "", "", column.buckets)
        for column, position in zip(recipe, chosen, strict=True)
    ]
    strangers = Strangers()
    rows = FeatureRows(table, EachRow(len(table)), planned, recipe, dtype, strangers)
    try:
        check_prepared(subject, rows)
    except DataError as error:
        # A message about a cell is about training elsewhere.
        raise DataError(f"{subject.partition(':')[0]}: {str(error).partition(': ')[2]}") from error
    rows.unknown = lambda *_: None
    return Prepared(rows, tuple(f"{table.name}: {notice}" for notice in strangers.notices))


def _of_array(x: object, recipe: Sequence[job_pb2.PreparedColumn]) -> Table:
    """A table of an array that has a column for each of the job's, in their order. Raises DataError if it has not."""
    names = [column.name for column in recipe]
    hint = f"give a data frame, or a dictionary of columns by their names: {listed(names)}"
    texts = [column.name for column in recipe if column.type != ColumnType.NUMBER.value]
    try:
        array = np.asarray(x)
    except (TypeError, ValueError) as error:
        raise DataError(f"x: is not a table: {error}; {hint}") from error
    if texts or array.dtype.kind not in "biuf":
        raise DataError(f"x: is an array, but the job was trained on a table of columns of several types; {hint}")
    if array.ndim != 2 or array.shape[1] != len(recipe):
        raise DataError(f"x: has the shape {array.shape}, but the job was trained on {len(recipe)} columns; {hint}")
    return table_of({name: array[:, index] for index, name in enumerate(names)}, "x", "x")
