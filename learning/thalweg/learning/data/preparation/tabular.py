"""A table as samples: planned, its rows chosen and split, its columns fitted to the training samples."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.data.access import Access
from thalweg.learning.data.errors import DataError, listed
from thalweg.learning.data.preparation.cells import ROWS_AT_ONCE, read, texts
from thalweg.learning.data.preparation.features import EachRow, FeatureRows, TargetRows
from thalweg.learning.data.preparation.fitting import Chosen, fit, is_named, recipe_of
from thalweg.learning.data.preparation.kept import Kept, bitmap
from thalweg.learning.data.preparation.plans import DROP, Plan, plan
from thalweg.learning.data.preparation.splitting import Parts, Values, parts
from thalweg.learning.data.preparation.summaries import row_blocks
from thalweg.learning.data.rows import Indices, Positions, Rows
from thalweg.learning.data.stored import content_of
from thalweg.learning.data.tables import Cells, Table
from thalweg.v1 import job_pb2

# Of what is fitted and kept: another one, and it is fitted again.
_FORMAT = 2


class Tabular(NamedTuple):
    """The samples of a table: features `x` and targets `y` of the rows that are kept, and which of those are in which part."""

    x: Rows
    y: TargetRows
    train: Positions
    validation: Positions
    test: Positions
    preprocessing: job_pb2.Preprocessing
    # For each group of the table that has training samples, the number of those up to its end.
    groups: tuple[int, ...]
    plan: Plan
    notices: tuple[str, ...] = ()
    # Identifies all samples; empty if it is not known what the data holds.
    content: str = ""


def choose(spec: job_pb2.JobSpec, table: Table, access: Access) -> Chosen:
    """The columns and rows that a job uses. Raises DataError if the table has none."""
    data = spec.data
    if not len(table) or not table.columns:
        raise DataError(f"data.{data.WhichOneof('source')}: {table.name!r} has no {'rows' if table.columns else 'columns'}")
    planned = plan(data, table.columns, table.name)
    kept = _kept(spec, table, planned, access)
    found = parts(data, spec.seed, len(kept), lambda name: _values(table, kept, name))
    return Chosen(planned, kept, *found.indices, found.notices)


def tabular(spec: job_pb2.JobSpec, table: Table, access: Access) -> Tabular:
    """The samples of a job's table, prepared as the job says. Raises DataError if that is not possible."""
    chosen = choose(spec, table, access)
    dtype = np.dtype(spec.model.dtype)
    preprocessing = _fitted(spec, table, chosen, access)
    columns, targets = recipe_of(preprocessing, chosen.plan)
    return Tabular(
        FeatureRows(table, chosen.kept, chosen.plan.features, columns, dtype),
        TargetRows(table, chosen.kept, chosen.plan.targets, targets),
        chosen.train,
        chosen.validation,
        chosen.test,
        preprocessing,
        tuple(sorted({*_before(chosen.rows(chosen.train), np.array(table.groups, np.intp)).tolist()} - {0})),
        chosen.plan,
        chosen.notices,
        _content_of(spec, table),
    )


def tabular_of_own_file(spec: job_pb2.JobSpec, table: Table, access: Access, trained: Tabular, field: str) -> Tabular:
    """The samples of a table of their own, prepared as those of the job's data are. Raises DataError if its columns differ."""
    spec = ignoring_less(spec, table)
    planned = plan(spec.data, table.columns, table.name)
    theirs, ours = ([(column.name, column.type) for column in each.columns] for each in (planned, trained.plan))
    if theirs != ours:
        differing = sorted({name for name, _ in {*theirs} ^ {*ours}}) or [name for name, _ in ours]
        problem = f"{table.name!r} has other columns than the job's data, or other types in them"
        raise DataError(f"{field}: {problem}: {listed(differing)}; name the columns alike, or give their types in data.columns")
    kept = _kept(spec, table, planned, access)
    columns, targets = recipe_of(trained.preprocessing, planned)
    none, every = np.empty(0, np.intp), EachRow(len(kept))
    x = FeatureRows(table, kept, planned.features, columns, np.dtype(spec.model.dtype))
    return Tabular(x, TargetRows(table, kept, planned.targets, targets), every, none, none, trained.preprocessing, (), planned)


def ignoring_less(spec: job_pb2.JobSpec, table: Table) -> job_pb2.JobSpec:
    """The job, for a table of samples that are held out: columns that the job ignores may be there or not, as in predictions."""
    made = job_pb2.JobSpec()
    made.CopyFrom(spec)
    known = {column.name for column in table.columns}
    made.data.ignore[:] = [name for name in spec.data.ignore if name in known]
    return made


def _values(table: Table, kept: Positions, name: str) -> Values:
    """The values of a column in all rows that are kept. Raises DataError if there is no such column, or a value is missing."""
    if name not in {column.name for column in table.columns}:
        known = listed([column.name for column in table.columns])
        raise DataError(f"data: samples are held out by {name!r}, which is no column of {table.name!r}; it has {known}")
    found: list[NDArray[Any]] = []
    codes: dict[str, int] = {}
    for rows in row_blocks(kept):
        cells = table.take(rows, [name])[name]
        if cells.missing is not None and cells.missing.any():
            where = table.where(int(rows[np.argmax(cells.missing)]))
            raise DataError(f"data: {table.name!r}: {where}: samples are held out by {name!r}, which has no value there")
        if cells.words:
            # Numbers of words, in the order of the rows, take less memory than words.
            new = np.array([codes.setdefault(word, len(codes)) for word in cells.words], np.intp)
            found.append(new[cells.values])
        else:
            found.append(cells.values)
    return Values(np.concatenate(found), tuple(codes))


def _kept(spec: job_pb2.JobSpec, table: Table, planned: Plan, access: Access) -> Positions:
    dropping = [column for column in planned.columns if column.missing == DROP]
    if not dropping:
        return EachRow(len(table))

    def keeps(rows: slice) -> NDArray[np.bool_]:
        whole = np.ones(rows.stop - rows.start, bool)
        for cells in read(table, np.arange(rows.start, rows.stop, dtype=np.intp), dropping):
            if cells.missing is not None:
                whole &= ~cells.missing
        return whole

    bits = _made(spec, table, access, "rows", lambda: bitmap(len(table), keeps, ROWS_AT_ONCE).tobytes())
    kept = Kept(np.frombuffer(bits, np.uint8).reshape(-1, 8))
    if not len(kept):
        fields = sorted({column.field for column in dropping})
        raise DataError(f"{fields[0]}: in each row of {table.name!r} a value is missing, so that all would be dropped")
    return kept


def _fitted(spec: job_pb2.JobSpec, table: Table, chosen: Chosen, access: Access) -> job_pb2.Preprocessing:
    made = _made(spec, table, access, "recipe", lambda: fit(spec, table, chosen).SerializeToString(deterministic=True))
    return job_pb2.Preprocessing.FromString(made)


def _content_of(spec: job_pb2.JobSpec, table: Table) -> str:
    return content_of(spec, len(table), list(table.groups), table.columns)


def _made(spec: job_pb2.JobSpec, table: Table, access: Access, what: str, make: Callable[[], bytes]) -> bytes:
    """What `make` makes, which depends on the job's data alone: made once on each node, if the data's content is known."""
    content = _content_of(spec, table)
    if not content:
        return make()

    def fill(path: Path) -> None:
        path.write_bytes(make())

    return access.made(f"{what}-{content}", fill).read_bytes()


def _before(rows: Positions, ends: NDArray[np.intp]) -> NDArray[np.intp]:
    """How many of some rows, which are in rising order, are before each of some rows: bisection, of all at once."""
    low, high = np.zeros(len(ends), np.intp), np.full(len(ends), len(rows), np.intp)
    while (open_ := np.flatnonzero(low < high)).size:
        middle = (low[open_] + high[open_]) // 2
        before = rows[middle] < ends[open_]
        low[open_[before]], high[open_[~before]] = middle[before] + 1, middle[~before]
    return low


class Part:
    """Some rows of a table, as a table."""

    def __init__(self, table: Table, rows: Positions) -> None:
        self._table = table
        self._rows = rows
        self.name = table.name
        self.columns = table.columns

    @property
    def groups(self) -> Sequence[int]:
        """Empty: the rows lie anywhere in the table."""
        return ()

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._rows)

    def take(self, indices: Indices, names: Sequence[str]) -> Mapping[str, Cells]:
        """The cells of some rows in some columns."""
        return self._table.take(self._rows[indices], names)

    def where(self, row: int) -> str:
        """Where a row is in the file, for messages."""
        return self._table.where(int(self._rows[np.array([row], np.intp)][0]))


def own_rows(spec: job_pb2.JobSpec, table: Table, access: Access) -> tuple[Part, NDArray[Any]]:
    """The rows that a job validates with, without any those that it learns from, and their targets, classes by name."""
    chosen = choose(spec, table, access)
    rows = chosen.rows(Parts(chosen.train, chosen.validation, chosen.test).shown)
    part, found = Part(table, rows), []
    for target in chosen.plan.targets:
        blocks = [next(read(table, some, [target])) for some in row_blocks(rows)]
        named = is_named(spec, target, len(chosen.plan.targets))
        found.append(np.concatenate([np.array(texts(cells)) if named else cells.values for cells in blocks]))
    return part, found[0] if len(found) == 1 else np.column_stack(found)
