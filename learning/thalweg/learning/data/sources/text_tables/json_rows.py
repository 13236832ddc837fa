"""The rows of a file of JSON lines: each line is an object, whose names are columns."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NoReturn

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.preparation import MAX_FEATURES
from thalweg.learning.data.sources.text_tables.batches import MAX_ROW, Row, Run, runs_of
from thalweg.learning.data.sources.text_tables.cells import Decimal
from thalweg.learning.data.sources.text_tables.encodings import TextFile
from thalweg.learning.data.sources.text_tables.words import Told, Words, shown
from thalweg.learning.data.tables import ColumnType

_PLURAL = {ColumnType.NUMBER: "numbers", ColumnType.TEXT: "text", ColumnType.BOOLEAN: "truth values"}
_ONE = {ColumnType.NUMBER: "a number", ColumnType.TEXT: "text", ColumnType.BOOLEAN: "a truth value"}
_NESTED = "write what is in it as columns of their own, such as {}_1, or leave it out"


class _Number(str):
    """The text of a number."""

    __slots__ = ()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


_DECODER = json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_refuse)


class JsonRows:
    """A file of JSON lines: its columns in the order in which they appear, and its rows, which can be read twice.

    A cell is the text of its value, empty if that is null or not there. Raises DataError, which speaks in `words`, if the file is
    not right, and OSError.
    """

    def __init__(self, file: TextFile, words: Words, told: Told) -> None:
        self._file = file
        self.words = words
        self.field = words.field
        self.decimal = Decimal()
        self._told = told
        self._found: dict[str, Counter[ColumnType]] = {}
        for line, row in self._objects():
            for name, value in row.items():
                counts = self._found.get(name)
                if counts is None:
                    counts = self._found[name] = Counter()
                    self._check_name(line, name)
                if value is not None:
                    counts[self._type(line, name, value)] += 1
        if not self._found:
            raise self._wrong(f"{file.name!r} has no rows; write an object on each line, as pandas does with lines=True")
        self._types: dict[str, ColumnType] = {}
        self.names: tuple[str, ...] = ()
        self._decide()

    def _decide(self) -> None:
        self.names = tuple(self._found)
        # What most values of a column are.
        self._types = {name: max(_PLURAL, key=lambda kind: counts[kind]) for name, counts in self._found.items()}

    @staticmethod
    def unite(files: Sequence["JsonRows"]) -> None:
        """Gives files the same columns, those of all, as if they were one file."""
        found: dict[str, Counter[ColumnType]] = {}
        for file in files:
            for name, counts in file._found.items():
                found.setdefault(name, Counter()).update(counts)
        for file in files:
            file._found = found
            file._decide()

    @property
    def texts(self) -> frozenset[str]:
        """The columns of text."""
        return frozenset(name for name, kind in self._types.items() if kind is ColumnType.TEXT)

    def column(self, position: int) -> str:
        """What messages call a column."""
        return shown(self.names[position])

    def where(self, line: int) -> str:
        """What messages call a line."""
        return f"line {line}"

    def runs(self) -> Iterator[Run]:
        """The rows. Raises DataError if a value is not of the type of most values of its column, unless the job gives one."""
        return runs_of(self._checked())

    def _checked(self) -> Iterator[Row]:
        for line, row in self._objects():
            for name, value in row.items():
                if value is not None and name not in self._told.types and self._told.others is None:
                    kind, usual = self._type(line, name, value), self._types[name]
                    if kind is not usual:
                        cell = f"{shown(_text(value))} is {_ONE[kind]}, and most values of the column are {_PLURAL[usual]}"
                        raise self._wrong(f"line {line}, column {shown(name)}: {cell}; write all in one way")
            yield line, [_text(row.get(name)) for name in self.names]

    def _objects(self) -> Iterator[tuple[int, dict[str, object]]]:
        with self._file.opened() as text:
            number = 0
            while line := text.readline(MAX_ROW + 1):
                number += 1
                if len(line) > MAX_ROW:
                    raise self._wrong(f"line {number} is longer than {MAX_ROW:,} characters; write an object on each line")
                if not line.strip():
                    continue
                try:
                    row: object = _DECODER.decode(line)
                except (ValueError, RecursionError) as error:
                    whole = "; the file seems to be one document: write an object on each line" if number == 1 else ""
                    raise self._wrong(f"line {number} is not JSON: {error}{whole}") from error
                if not isinstance(row, dict):
                    raise self._wrong(f'line {number} is no object, such as {{"size": 1.5}}; write an object on each line')
                yield number, row

    def _type(self, line: int, name: str, value: object) -> ColumnType:
        match value:
            case bool():
                return ColumnType.BOOLEAN
            case _Number():
                return ColumnType.NUMBER
            case str():
                return ColumnType.TEXT
            case _:
                kind = "a list" if isinstance(value, list) else "an object"
                raise self._wrong(f"line {line}, column {shown(name)} holds {kind}; {_NESTED.format(name)}")

    def _check_name(self, line: int, name: str) -> None:
        if not name.strip() or "\0" in name:
            raise self._wrong(f"line {line}: {shown(name)} is not the name of a column; rename it")
        if len(self._found) > MAX_FEATURES:
            raise self._wrong(f"line {line}: there are more than {MAX_FEATURES:,} columns, which is the maximum")

    def _wrong(self, problem: str) -> DataError:
        return DataError(f"{self.field}: {problem}")


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case _:
            return str(value)
