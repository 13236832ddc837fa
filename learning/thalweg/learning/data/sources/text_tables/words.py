"""What messages about a table say, and what a job says about the file."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from thalweg.learning.data.tables import ColumnType
from thalweg.v1 import job_pb2

# The most characters of a cell that a message shows.
MAX_SHOWN = 40


class Words(NamedTuple):
    """The words of messages: the field that they are about, and how a user says whether a file has a line of column names."""

    field: str
    named: str
    unnamed: str

    def setting(self, text: str) -> str:
        """Advice to change the job, where the user can: a file to predict from is read as the job says that was trained."""
        return f", or give {text}" if self.field.startswith("data.") else ""


TO_TRAIN = Words("data.csv", "data.header = true", "data.header = false")
TO_PREDICT = Words("INPUT", "--header", "--no-header")


class Told(NamedTuple):
    """What a job says about a file, None where it does not: that is found out then.

    `missing` are the ways to write that a value is missing, in place of the usual ones. `types` are those of columns by their
    names, and `others` is that of all others. If the table is `complete`, a missing number is an error.
    With `json_lines`, it is a file of those.
    """

    header: bool | None = None
    delimiter: str | None = None
    encoding: str | None = None
    decimal: str | None = None
    missing: frozenset[str] | None = None
    types: Mapping[str, ColumnType] = MappingProxyType({})
    others: ColumnType | None = None
    complete: bool = False
    json_lines: bool = False


DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}
DECIMALS = {"point": ".", "comma": ","}


JSON_LINES = Told(missing=frozenset(), json_lines=True)


def told_by(data: job_pb2.Data, header: bool | None = None) -> Told:
    """What a job's data says about its file. `header` says whether it has names, if that differs from the job."""
    return Told(
        header=header if header is not None or not data.HasField("header") else data.header,
        delimiter=DELIMITERS[data.delimiter] if data.delimiter else None,
        encoding=data.encoding or None,
        decimal=DECIMALS[data.decimal] if data.decimal else None,
        missing=frozenset(data.missing_values) if data.missing_values else None,
        types=types_by(data),
    )


def types_by(data: job_pb2.Data) -> dict[str, ColumnType]:
    """The types of columns that a job's data gives."""
    return {name: ColumnType(settings.type) for name, settings in data.columns.items() if settings.type}


def shown(text: str) -> str:
    """A text in a message: its beginning, if it is long."""
    return repr(text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "...")


def count(number: int, what: str) -> str:
    """A number of things."""
    return f"{number} {what}{'' if number == 1 else 's'}"
