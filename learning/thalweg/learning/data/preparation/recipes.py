"""The recipe of a table: how each column becomes features and targets, as fitted to the training samples. Part of the model."""

import math
from collections.abc import Mapping

import numpy as np

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.preparation.cells import number_of, time_of, truth_of
from thalweg.learning.data.preparation.plans import (
    CALENDAR,
    DROP,
    HASH,
    LOG,
    MEAN,
    MEDIAN,
    MIN_MAX,
    MOST_FREQUENT,
    ONE_HOT,
    ORDINAL,
    STANDARDIZE,
    Planned,
)
from thalweg.learning.data.preparation.summaries import MAX_CATEGORIES, Summary
from thalweg.learning.data.tables import ColumnType
from thalweg.v1 import job_pb2

# Categories for which there is a feature each, unless a job asks for more.
MAX_ONE_HOT = 100
# The features of a time: the standardized time, and sine and cosine of the time of day, of the day of the week and of the year.
CALENDAR_FEATURES = 7


def width(column: job_pb2.PreparedColumn) -> int:
    """The number of features that a column becomes."""
    match column.prepare:
        case "one_hot":
            return len(column.categories)
        case "hash":
            return column.buckets
        case "calendar":
            return CALENDAR_FEATURES
        case _:
            return 1


def prepared_column(column: Planned, summary: Summary, asked: bool) -> job_pb2.PreparedColumn:
    """How a column becomes features. `asked` says whether the job itself asks for the way it is prepared.

    Raises DataError if its training samples do not allow that.
    """
    made = job_pb2.PreparedColumn(name=column.name, type=column.type.value, prepare=column.prepare, scale=1.0)
    if not summary.present:
        raise DataError(f"data: the column {column.name!r} has no value in the training samples; name it in data.ignore")
    if column.prepare in (ONE_HOT, ORDINAL):
        _fill_categories(made, column, summary, asked)
    elif column.prepare == HASH:
        made.buckets = column.buckets
    else:
        _fit_numbers(made, column.setting, column.prepare, summary)
    if column.missing not in ("", DROP):
        _fill_missing(made, column, summary)
        _check_fill(made, column)
    return made


def shift_and_scale(path: str, prepare: str, summary: Summary) -> tuple[float, float]:
    """What numbers are shifted and scaled by. Raises DataError, about the settings at `path`, if they cannot be prepared so."""
    shift, scale = 0.0, 1.0
    if prepare in (STANDARDIZE, CALENDAR):
        shift, scale = summary.mean, summary.deviation
    elif prepare == MIN_MAX:
        shift, scale = summary.low, (summary.high - summary.low) or 1.0
    elif prepare == LOG and summary.low <= -1:
        raise DataError(f"{path}.prepare: log is log(1 + x), and the smallest training value is {summary.low:.15g}; use another")
    if not (math.isfinite(shift) and math.isfinite(scale)):
        raise DataError(f"{path}.prepare: the numbers are too large for {prepare}; use log or none, or scale them")
    return shift, scale


def _fit_numbers(made: job_pb2.PreparedColumn, path: str, prepare: str, summary: Summary) -> None:
    made.shift, made.scale = shift_and_scale(path, prepare, summary)


def _fill_categories(made: job_pb2.PreparedColumn, column: Planned, summary: Summary, asked: bool) -> None:
    limit = MAX_CATEGORIES if asked else MAX_ONE_HOT
    if summary.overflow or len(summary.counts) > limit:
        more = "" if asked else f'; "{ONE_HOT}" there allows {MAX_CATEGORIES:,}'
        if summary.are_dates():
            more += f'; they look like dates: {column.setting}.type = "time" reads them as such'
        raise DataError(
            f"{column.setting}.prepare: the column {column.name!r} has more than {limit:,} categories; write "
            f'{column.setting}.prepare = "{HASH}", or name the column in data.ignore{more}'
        )
    made.categories.extend(sorted(summary.counts))


def _fill_missing(made: job_pb2.PreparedColumn, column: Planned, summary: Summary) -> None:
    """What replaces a missing value."""
    if summary.overflow and not summary.missing and column.field == "data.missing":
        # The job does not care for this column, and nothing is missing there.
        return
    if column.categorical:
        made.fill_text = summary.most_frequent if column.missing == MOST_FREQUENT else column.missing
        if column.missing != MOST_FREQUENT and column.prepare != HASH and column.missing not in made.categories:
            made.categories[:] = sorted([*made.categories, column.missing])
    elif column.missing == MEAN:
        made.fill = summary.mean
    elif column.missing == MEDIAN:
        made.fill = summary.median
    else:
        text = summary.most_frequent if column.missing == MOST_FREQUENT else column.missing
        made.fill = _value(column, text)


def _value(column: Planned, text: str) -> float:
    """A value that is written as text, as a number."""
    try:
        if column.type is ColumnType.BOOLEAN:
            return float(truth_of(text))
        if column.type is ColumnType.TIME:
            return float(time_of(text).astype(np.int64) / 1e6)
        return number_of(text)
    except (ValueError, KeyError, OverflowError):
        what = {"number": "numbers", "boolean": "truth values", "time": "times"}[column.type.value]
        hint = "" if column.field.startswith("data.columns") else f"; set {column.setting}.missing"
        words = f"one of {MEAN}, {MEDIAN}, {MOST_FREQUENT}, {DROP}"
        raise DataError(
            f"{column.field}: {text!r} is neither {words}, nor a value of the column {column.name!r}, which holds {what}{hint}"
        ) from None


def _check_fill(made: job_pb2.PreparedColumn, column: Planned) -> None:
    if made.prepare == LOG and made.fill <= -1:
        raise DataError(f"{column.field}: {made.fill:.15g} has no log(1 + x); give a larger value")


def missing_problem(counts: Mapping[str, int], first: str) -> str:
    """What to write about missing values: how many each column has, and what to do. `first` says where the first is."""
    most = sorted(counts.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{name!r} {count:,}" for name, count in most[:12])
    more = f" and {len(most) - 12:,} more columns" if len(most) > 12 else ""
    return (
        f"values are missing, by column: {listed}{more}; the first is {first}; write data.missing = "
        f'"{MEDIAN}", "{MEAN}", "{MOST_FREQUENT}", a value, or "{DROP}" to leave out such rows, or the same for one column, '
        f"as in data.columns.{most[0][0]}.missing"
    )


def prepared_target(column: Planned, summary: Summary, classes: list[str]) -> job_pb2.PreparedTarget:
    """How a target was read: as classes, or as numbers that are prepared."""
    if classes:
        return job_pb2.PreparedTarget(name=column.name, classes=classes)
    shift, scale = shift_and_scale(column.setting, column.prepare, summary)
    return job_pb2.PreparedTarget(name=column.name, prepare=column.prepare, shift=shift, scale=scale)
