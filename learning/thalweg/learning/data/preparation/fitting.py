"""The preparation of a table, fitted to the training samples."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.order import keeps_permutations
from thalweg.learning.data.preparation.features import FeatureRows
from thalweg.learning.data.preparation.kept import Kept
from thalweg.learning.data.preparation.plans import DROP, NONE, STANDARDIZE, Plan, Planned
from thalweg.learning.data.preparation.recipes import missing_problem, prepared_column, prepared_target, width
from thalweg.learning.data.preparation.statistics import MAX_FEATURES, standardization
from thalweg.learning.data.preparation.summaries import MAX_CATEGORIES, Summary, summaries
from thalweg.learning.data.rows import Positions, Selected
from thalweg.learning.data.tables import ColumnType, Table
from thalweg.v1 import job_pb2

# The most bytes of a preparation: it travels in messages of 4 MiB with the layout of the parameters. Mean and deviation of
# MAX_FEATURES features take 2 MiB, and their names 1 MiB more.
_MAX_BYTES = 13 << 18
_CLASSIFYING = ("softmax_cross_entropy", "binary_cross_entropy")


class Chosen(NamedTuple):
    """The rows of a table that a job learns from, validates and tests with, in rising order, and its plan."""

    plan: Plan
    kept: Positions
    train: Positions
    validation: Positions
    test: Positions
    notices: tuple[str, ...] = ()

    def rows(self, positions: Positions) -> Positions:
        """The rows of the table at some positions among those that are kept."""
        return Selected(self.kept, positions) if isinstance(self.kept, Kept) else positions


def fit(spec: job_pb2.JobSpec, table: Table, chosen: Chosen) -> job_pb2.Preprocessing:
    """How the columns of a table become features and targets. Raises DataError if they cannot, as the job says."""
    data, planned = spec.data, chosen.plan
    train, validation = chosen.rows(chosen.train), chosen.rows(chosen.validation)
    found = summaries(table, train, planned.columns, medians=True)
    held_out = summaries(table, validation, planned.columns, medians=False)
    _check_missing(table, planned, found, held_out)
    made = job_pb2.Preprocessing(target=planned.targets[0].name if len(planned.targets) == 1 else "")
    _fit_targets(made, spec, planned, found, held_out)
    if _is_plain(planned):
        made.columns.extend(column.name for column in planned.features)
        if planned.features[0].prepare == STANDARDIZE:
            made.MergeFrom(_standardization(spec, table, chosen, found))
        columns = columns_of(made)
    else:
        columns = [prepared_column(each, found[each.name], _asked(data, each)) for each in planned.features]
        made.table.extend(columns)
    features = sum(map(width, columns))
    if features > MAX_FEATURES:
        widest = max(columns, key=width)
        raise DataError(
            f"data.columns.{widest.name}.prepare: the columns become {features:,} features, {width(widest):,} of them from this "
            f"one; at most {MAX_FEATURES:,} are possible; prepare it otherwise, or name it in data.ignore"
        )
    for column in columns:
        _check_dtype(spec, column, found[column.name], held_out[column.name])
    if data.features:
        made.others_ignored = True
    else:
        used = {column.name for column in planned.columns}
        index = [column.name for column in table.columns if column.is_index and column.name not in used]
        made.ignored.extend(dict.fromkeys([*data.ignore, *index]))
    made.shape.append(features)
    made.dtype = spec.model.dtype
    if (size := made.ByteSize()) > _MAX_BYTES:
        widest = max(columns, key=lambda each: each.ByteSize())
        raise DataError(
            f"data.columns.{widest.name}.prepare: what is known of all columns takes {size:,} bytes, {widest.ByteSize():,} "
            f'for this one; at most {_MAX_BYTES:,} travel with a model; prepare it as "hash", or name it in data.ignore'
        )
    return made


def _asked(data: job_pb2.Data, column: Planned) -> bool:
    return column.name in data.columns and bool(data.columns[column.name].prepare)


def _is_plain(planned: Plan) -> bool:
    """Whether the features are the numbers in the columns, or all of these standardized, and none may be missing."""
    first = planned.features[0].prepare
    return first in (NONE, STANDARDIZE) and all(
        column.given is column.type is ColumnType.NUMBER and column.prepare == first and column.missing in ("", DROP)
        for column in planned.features
    )


def _standardization(spec: job_pb2.JobSpec, table: Table, chosen: Chosen, found: Mapping[str, Summary]) -> job_pb2.Preprocessing:
    """Mean and deviation of all columns: of a table that can be read row by row, with the bits of the sums of arrays."""
    names = [column.name for column in chosen.plan.features]
    if table.groups:
        statistics = job_pb2.Preprocessing(
            mean=[found[name].mean for name in names], scale=[found[name].deviation for name in names]
        )
    else:
        plain = [job_pb2.PreparedColumn(name=name, prepare=NONE, scale=1.0) for name in names]
        matrix = FeatureRows(table, chosen.rows(chosen.train), chosen.plan.features, plain, np.dtype(np.float64))
        with np.errstate(over="ignore", invalid="ignore"):
            statistics = standardization(matrix, whole=keeps_permutations(spec.data.order, len(chosen.kept)))
    if not np.isfinite([*statistics.mean, *statistics.scale]).all():
        source = spec.data.WhichOneof("source")
        raise DataError(f"data.{source}: x holds numbers that are too large to be standardized; scale them, or remove them")
    return statistics


def _check_missing(table: Table, planned: Plan, *parts: Mapping[str, Summary]) -> None:
    """Raises DataError if values are missing, and the job does not say what is to be done then."""
    counts, rows = {}, []
    for column in planned.columns:
        missing = sum(part[column.name].missing for part in parts)
        if missing and not column.missing:
            counts[column.name] = missing
            rows += [part[column.name].first_missing for part in parts if part[column.name].missing]
    targets = [column.name for column in planned.targets if column.name in counts]
    if targets and len(targets) == len(counts):
        raise DataError(
            f"data.columns.{targets[0]}.missing: {counts[targets[0]]:,} rows of {table.name!r} have no target, the first is "
            f'{table.where(min(rows))}; write data.columns.{targets[0]}.missing = "{DROP}" to leave them out, or fill them in'
        )
    if counts:
        raise DataError(f"data.missing: in {table.name!r} {missing_problem(counts, table.where(min(rows)))}")


def _fit_targets(made: job_pb2.Preprocessing, spec: job_pb2.JobSpec, planned: Plan, *parts: Mapping[str, Summary]) -> None:
    """Adds how targets were read, if they are not just the numbers of one column."""
    recipes = []
    for target in planned.targets:
        classes = _classes(spec, target, len(planned.targets), *parts)
        recipes.append(prepared_target(target, parts[0][target.name], classes))
    if len(recipes) > 1 or any(recipe.classes or recipe.prepare != NONE for recipe in recipes):
        made.targets.extend(recipes)


def is_named(spec: job_pb2.JobSpec, target: Planned, count: int) -> bool:
    """Whether a target, of a number of them, is a class that has a name."""
    return target.type is ColumnType.TEXT or (
        target.type is ColumnType.BOOLEAN and count == 1 and spec.model.loss in _CLASSIFYING
    )


def _classes(spec: job_pb2.JobSpec, target: Planned, count: int, *parts: Mapping[str, Summary]) -> list[str]:
    """The names of a target's classes, sorted, from all rows: a label that only validation samples have is one, too."""
    if target.type is ColumnType.BOOLEAN and is_named(spec, target, count):
        return ["false", "true"]
    if target.type is not ColumnType.TEXT:
        return []
    loss = spec.model.loss
    if spec.model.WhichOneof("kind") is None and loss not in _CLASSIFYING and not spec.data.one_hot:
        raise DataError(
            f"data.target: the column {target.name!r} holds text, and model.loss = {loss} needs numbers; use one of "
            f"{', '.join(_CLASSIFYING)} for classes, or name another target"
        )
    if any(part[target.name].overflow for part in parts):
        raise DataError(
            f"data.target: the column {target.name!r} has more than {MAX_CATEGORIES:,} different texts; name another target"
        )
    names = sorted({text for part in parts for text in part[target.name].counts})
    if len(names) < 2 or (loss == "binary_cross_entropy" and len(names) > 2):
        wanted = "exactly two" if loss == "binary_cross_entropy" else "at least two"
        raise DataError(
            f"data.target: the column {target.name!r} has {len(names)} classes; {loss or 'a classifier'} needs {wanted}"
        )
    return names


def _check_dtype(spec: job_pb2.JobSpec, column: job_pb2.PreparedColumn, *parts: Summary) -> None:
    """Raises DataError if numbers are too large for the job's dtype when they are prepared, which keeps their order."""
    if column.prepare in ("one_hot", "ordinal", "hash"):
        return
    largest = np.finfo(spec.model.dtype).max
    source = spec.data.WhichOneof("source")
    for part in (part for part in parts if part.present):
        if column.prepare == "log":
            if part.low <= -1:
                raise DataError(
                    f"data.columns.{column.name}.prepare: log is log(1 + x), and the smallest value is {part.low:.15g}"
                )
            continue
        with np.errstate(over="ignore"):
            ends = (np.array([part.low, part.high]) - column.shift) / column.scale
        if not np.abs(ends).max() <= largest:
            raise DataError(
                f"data.{source}: x holds numbers that are too large for {spec.model.dtype}, in the column {column.name!r}; scale "
                "them, or remove them"
            )


def recipe_of(
    preprocessing: job_pb2.Preprocessing, planned: Plan
) -> tuple[Sequence[job_pb2.PreparedColumn], Sequence[job_pb2.PreparedTarget]]:
    """How columns become features and targets; of a table of numbers alone, too."""
    return columns_of(preprocessing), preprocessing.targets or [
        job_pb2.PreparedTarget(name=each.name, scale=1) for each in planned.targets
    ]


def columns_of(preprocessing: job_pb2.Preprocessing) -> Sequence[job_pb2.PreparedColumn]:
    """How columns become features, also of a table of numbers alone; none, if samples are not those of a table with names."""
    if preprocessing.table:
        return preprocessing.table
    if not preprocessing.columns:
        return []
    shifts = preprocessing.mean or [0.0] * len(preprocessing.columns)
    scales = preprocessing.scale or [1.0] * len(preprocessing.columns)
    return [
        job_pb2.PreparedColumn(name=name, type=ColumnType.NUMBER.value, prepare=STANDARDIZE, shift=shift, scale=scale)
        for name, shift, scale in zip(preprocessing.columns, shifts, scales, strict=True)
    ]
