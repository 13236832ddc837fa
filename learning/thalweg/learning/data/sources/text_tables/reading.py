"""CSV files and JSON lines as a table: in memory if they are small, and otherwise converted once on each node."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from thalweg.learning.data.access import Access
from thalweg.learning.data.errors import DataError
from thalweg.learning.data.sources.files import SourceFile
from thalweg.learning.data.sources.text_tables.batches import Rows
from thalweg.learning.data.sources.text_tables.conversion import Block, blocks
from thalweg.learning.data.sources.text_tables.encodings import TextFile
from thalweg.learning.data.sources.text_tables.held import HeldTable, column_of
from thalweg.learning.data.sources.text_tables.json_rows import JsonRows
from thalweg.learning.data.sources.text_tables.kinds import kinds_of
from thalweg.learning.data.sources.text_tables.records import Records
from thalweg.learning.data.sources.text_tables.several import Several, check_folders
from thalweg.learning.data.sources.text_tables.words import DECIMALS, DELIMITERS, Told, Words
from thalweg.learning.data.tables import Column, Table

# Bytes of a file that is read to memory: to convert it would take longer than to read it again.
MAX_HELD_FILE = 16 << 20
# The format of what is made of a file, and the rules by which its cells are read: another one, and it is made again.
_FORMAT = 1


class TextTable(Table, Protocol):
    """A table of a text file, which knows how many values of each column are missing."""

    @property
    def missing(self) -> Mapping[str, int]:
        """The number of missing values by the names of columns."""


class Read(NamedTuple):
    """A table, and whether its columns have names. Those of others are called 1, 2 and so on."""

    table: TextTable
    named: bool


class Written(NamedTuple):
    """How a CSV file is written, in the words of job files, and the number of lines before its table."""

    delimiter: str
    encoding: str
    decimal: str
    header: bool
    skipped: int


def written(path: Path, words: Words, name: str, told: Told) -> Written:
    """How a CSV file is written, of which some may be known. Raises DataError if its beginning is not right, and OSError."""
    file = TextFile(path, words, name, told.encoding)
    records = Records(file, words, told)
    delimiter, decimal, skipped, _ = records.dialect
    delimiters, decimals = ({mark: word for word, mark in each.items()} for each in (DELIMITERS, DECIMALS))
    return Written(delimiters[delimiter], file.encoding, decimals[decimal], bool(records.names), skipped)


def read(path: Path, words: Words, name: str, told: Told, access: Access | None = None, sha256: str = "") -> Read:
    """The table in a CSV file, or in one of JSON lines if `told` says so, which messages call `name`.

    With `access`, a large file is converted to Arrow, if pyarrow is installed; otherwise the table is in memory. `sha256` is that
    of the file, if it is known. Raises DataError, which speaks in `words`, if the file is not right, and OSError.
    """
    return read_files([SourceFile(name, path)], words, name, told, access, sha256)


def read_files(
    given: Sequence[SourceFile], words: Words, name: str, told: Told, access: Access | None = None, sha256: str = ""
) -> Read:
    """The table in one or several files, as `read`. `sha256` is that of the file, or of the manifest."""
    with _naming(given, words.field, name):
        return _read_files(given, words, name, told, access, sha256)


@contextmanager
def _naming(given: Sequence[SourceFile], field: str, name: str) -> Iterator[None]:
    """Around what is about a job's data: errors about its field name the file once."""
    try:
        yield
    except DataError as error:
        about, _, problem = str(error).partition(": ")
        if about == field and field.startswith("data."):
            named = [repr(file.name) for file in given] if len(given) > 1 else [repr(name)]
            twice = next((each for each in named if problem.startswith(f"{each}: {each} ")), None)
            if twice:
                problem = problem.removeprefix(f"{twice}: ")
            elif len(given) == 1 and named[0] not in problem:
                problem = f"{named[0]}: {problem}"
            error.args = (f"{field}: {problem}",)
        raise


def _read_files(given: Sequence[SourceFile], words: Words, name: str, told: Told, access: Access | None, sha256: str) -> Read:
    names = [file.name for file in given] if len(given) > 1 else []
    check_folders([file.name for file in given], words.field)
    spoken = [words._replace(field=f"{words.field}: {each!r}") for each in names] or [words]
    shown = names or [name]
    files = [TextFile(file.path, own, each, told.encoding) for file, own, each in zip(given, spoken, shown, strict=True)]
    large = any(file.compressed for file in files) or sum(file.path.stat().st_size for file in given) > MAX_HELD_FILE

    def made() -> tuple[list[Column], Iterator[Block], bool]:
        return _made(files, spoken, names, words, told)

    def check() -> None:
        for file in files:
            file.check()

    if access and large and importlib.util.find_spec("pyarrow"):
        from thalweg.learning.data.sources.text_tables import converted  # noqa: PLC0415 - imports pyarrow

        def fill(folder: Path) -> None:
            columns, cells, named = made()
            converted.write(folder, columns, cells, named=named)
            check()

        identity = sha256 or " ".join(str(file.state) for file in files)
        table = converted.ConvertedTable(access.made(_key(identity, told), fill), name, names)
        return Read(table, table.named)
    columns, cells, named = made()
    held = HeldTable(name, columns, cells, f"{words.field}: {name!r}", names)
    check()
    return Read(held, named)


def _made(
    files: Sequence[TextFile], spoken: Sequence[Words], names: Sequence[str], words: Words, told: Told
) -> tuple[list[Column], Iterator[Block], bool]:
    """The columns of files, their rows as values, and whether columns have names. `spoken` are the words about each file."""
    rows: Rows
    if told.json_lines:
        lines = [JsonRows(file, own, told) for file, own in zip(files, spoken, strict=True)]
        rows, width = (Several(lines, names, words) if names else lines[0]), 0
    else:
        records = [Records(file, own, told) for file, own in zip(files, spoken, strict=True)]
        rows, width = (Several(records, names, words) if names else records[0]), records[0].width
    columns = rows.names or tuple(str(position) for position in range(1, width + 1))
    kinds = kinds_of(rows, columns, told)
    found = [column_of(each, kind) for each, kind in zip(columns, kinds, strict=True)]
    return found, blocks(rows, kinds, told), bool(rows.names)


def _key(identity: str, told: Told) -> str:
    types = sorted((name, kind.value) for name, kind in told.types.items())
    missing = None if told.missing is None else sorted(told.missing)
    others = told.others and told.others.value
    settings = [told.header, told.delimiter, told.encoding, told.decimal, missing, types, others, told.complete, told.json_lines]
    return f"table-{hashlib.sha256(json.dumps([_FORMAT, identity, settings]).encode()).hexdigest()}"
