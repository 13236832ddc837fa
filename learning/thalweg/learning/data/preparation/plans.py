"""Which columns of a table are features and which are targets, and what is to be done with each: the job's choice, checked."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from thalweg.learning.data.errors import DataError, listed
from thalweg.learning.data.matching import suggestion
from thalweg.learning.data.tables import Column, ColumnType
from thalweg.v1 import job_pb2

# Ways to prepare numbers, and text.
NONE, STANDARDIZE, MIN_MAX, LOG = "none", "standardize", "min_max", "log"
ONE_HOT, ORDINAL, HASH, CALENDAR = "one_hot", "ordinal", "hash", "calendar"
OF_NUMBERS = (NONE, STANDARDIZE, MIN_MAX, LOG)
OF_CATEGORIES = (ONE_HOT, ORDINAL, HASH)
# What replaces missing values, or drops their rows. Anything else is a value.
MEAN, MEDIAN, MOST_FREQUENT, DROP = "mean", "median", "most_frequent", "drop"
_ALLOWED = {
    ColumnType.NUMBER: (*OF_NUMBERS, *OF_CATEGORIES),
    ColumnType.TEXT: OF_CATEGORIES,
    ColumnType.BOOLEAN: (NONE, *OF_CATEGORIES),
    ColumnType.TIME: (CALENDAR, *OF_NUMBERS),
}


class Planned(NamedTuple):
    """A column that is used: what it holds in the table and what its cells are read as, and what is done with them.

    `missing` is empty where a missing value is an error, and `field` is the setting that it comes from.
    """

    name: str
    given: ColumnType
    type: ColumnType
    prepare: str
    missing: str
    field: str
    buckets: int

    @property
    def setting(self) -> str:
        """The path of this column's settings."""
        return f"data.columns.{self.name}"

    @property
    def categorical(self) -> bool:
        """Whether its values are categories."""
        return self.prepare in OF_CATEGORIES


class Plan(NamedTuple):
    """The features, in the model's order, and the targets of a table."""

    features: tuple[Planned, ...]
    targets: tuple[Planned, ...]

    @property
    def columns(self) -> tuple[Planned, ...]:
        """All columns that are used."""
        return self.features + self.targets


def plan(data: job_pb2.Data, columns: Sequence[Column], table: str) -> Plan:
    """The plan for a table with these columns, which messages call `table`. Raises DataError if it does not fit the table."""
    known = {column.name: column for column in columns}
    for field, names in (
        ("data.target", [data.target] if data.target else []),
        ("data.targets", data.targets),
        ("data.features", data.features),
        ("data.ignore", data.ignore),
        ("data.columns", sorted(data.columns)),
    ):
        _check_names(field, names, known, table)
    if data.target and data.targets:
        raise DataError("data.targets: is given beside data.target; give one of them")
    # pandas writes an index last, which nobody means by the last column.
    plain = [column.name for column in columns if not column.is_index] or list(known)
    targets = list(data.targets) or [data.target or plain[-1]]
    ignored = {*data.ignore}
    features = list(data.features) or [
        name for name in known if (name in plain or name in data.columns) and name not in targets and name not in ignored
    ]
    for name in targets:
        if name in ignored or name in features:
            where = "data.ignore" if name in ignored else "data.features"
            told = (
                "" if data.target or data.targets else "; by default the last column is the target: name another with data.target"
            )
            raise DataError(f"{where}: names {name!r}, which is the target{told}")
    for name in features:
        if name in ignored:
            raise DataError(f"data.ignore: names {name!r}, which is one of data.features")
    if not features:
        raise DataError(f"data.features: {table!r} has no columns left for features; it has {listed(known)}")
    return Plan(
        tuple(_feature(data, known[name]) for name in features),
        tuple(_target(data, known[name], len(targets)) for name in targets),
    )


def _check_names(field: str, names: Sequence[str], known: Mapping[str, Column], table: str) -> None:
    if len({*names}) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise DataError(f"{field}: names {twice!r} twice")
    for name in names:
        if name not in known:
            hint = suggestion(name, list(known))
            raise DataError(f"{field}: {table!r} has no column {name!r}{hint}; it has {listed(known)}")


def _feature(data: job_pb2.Data, column: Column) -> Planned:
    settings = data.columns[column.name] if column.name in data.columns else job_pb2.ColumnSettings()
    kind = ColumnType(settings.type) if settings.type else column.type
    usual = {ColumnType.TEXT: ONE_HOT, ColumnType.TIME: CALENDAR}.get(kind, NONE)
    if kind is ColumnType.NUMBER and data.standardize:
        usual = STANDARDIZE
    prepare = settings.prepare or usual
    if prepare not in _ALLOWED[kind]:
        raise DataError(
            f"data.columns.{column.name}.prepare: {prepare} is not possible, because the column holds {_PLURAL[kind]}; "
            f"use one of {', '.join(_ALLOWED[kind])}{_other_type(kind, prepare)}"
        )
    missing, field = settings.missing, f"data.columns.{column.name}.missing"
    if not missing:
        missing, field = data.missing, "data.missing"
        # A setting for all columns; text has no mean.
        if missing in (MEAN, MEDIAN) and (kind in (ColumnType.TEXT, ColumnType.BOOLEAN) or prepare in OF_CATEGORIES):
            missing = MOST_FREQUENT
    elif missing in (MEAN, MEDIAN) and (kind in (ColumnType.TEXT, ColumnType.BOOLEAN) or prepare in OF_CATEGORIES):
        raise DataError(f"{field}: {missing} needs numbers, but the column holds categories; use {MOST_FREQUENT}, or a value")
    return Planned(column.name, column.type, kind, prepare, missing, field, settings.buckets)


def _target(data: job_pb2.Data, column: Column, count: int) -> Planned:
    settings = data.columns[column.name] if column.name in data.columns else job_pb2.ColumnSettings()
    kind = ColumnType(settings.type) if settings.type else column.type
    path = f"data.columns.{column.name}"
    if kind is ColumnType.TIME:
        raise DataError(f"{path}.type: the target holds times; targets are numbers, truth values, or text for classes")
    if kind is ColumnType.TEXT and count > 1:
        raise DataError(f"data.targets: {column.name!r} holds text; several targets must be numbers or truth values")
    allowed = OF_NUMBERS if kind is ColumnType.NUMBER else (NONE,)
    if settings.prepare and settings.prepare not in allowed:
        raise DataError(
            f"{path}.prepare: {settings.prepare} is not possible for a target that holds {_PLURAL[kind]}; "
            f"use {'one of ' if len(allowed) > 1 else ''}{', '.join(allowed)}"
        )
    missing = settings.missing or (data.missing if data.missing == DROP else "")
    if missing not in ("", DROP):
        raise DataError(f"{path}.missing: {missing!r} is not possible for a target, which is not made up; use {DROP}")
    field = f"{path}.missing" if settings.missing else "data.missing"
    return Planned(column.name, column.type, kind, settings.prepare or NONE, missing, field, 0)


_PLURAL = {
    ColumnType.NUMBER: "numbers",
    ColumnType.TEXT: "text",
    ColumnType.BOOLEAN: "truth values",
    ColumnType.TIME: "times",
}


def _other_type(kind: ColumnType, prepare: str) -> str:
    return ', or read it as numbers with type = "number"' if kind is ColumnType.TEXT and prepare in OF_NUMBERS else ""
