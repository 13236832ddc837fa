"""The rows of several files, which are one table."""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.sources.text_tables.batches import Run
from thalweg.learning.data.sources.text_tables.cells import Decimal
from thalweg.learning.data.sources.text_tables.json_rows import JsonRows
from thalweg.learning.data.sources.text_tables.lines import numbered, place
from thalweg.learning.data.sources.text_tables.records import Records
from thalweg.learning.data.sources.text_tables.words import Words, count


class Several:
    """The rows of files one after another, with the columns of the first file. `names` are those of the files.

    Raises DataError if the columns of CSV files differ. Those of JSON lines are the columns of all files.
    """

    def __init__(self, files: Sequence[Records | JsonRows], names: Sequence[str], words: Words) -> None:
        self._files = files
        self._names = names
        self._first = files[0]
        self.field = words.field
        self.words = words
        if lines := [file for file in files if isinstance(file, JsonRows)]:
            JsonRows.unite(lines)
        # Where a file has decimal commas, others may have whole numbers alone.
        self.decimal = Decimal("," if any(file.decimal.mark == "," for file in files) else ".")
        self.names = self._first.names
        self.texts = self._first.texts
        for name, file in zip(names, files, strict=True):
            self._check_columns(name, file)

    @property
    def width(self) -> int:
        """The number of columns."""
        return _width(self._first)

    def column(self, position: int) -> str:
        """What messages call a column."""
        return self._first.column(position)

    def where(self, line: int) -> str:
        """What messages call a line."""
        return place(line, self._names)

    def runs(self) -> Iterator[Run]:
        """The rows of all files. Raises DataError and OSError."""
        for number, file in enumerate(self._files):
            order = [file.names.index(name) for name in self.names]
            for lines, rows in file.runs():
                cells = rows if file.names == self.names else [[row[position] for position in order] for row in rows]
                yield Run(numbered(lines, number), cells)

    def _check_columns(self, name: str, file: Records | JsonRows) -> None:
        first, remedy = self._names[0], "write all files with the same columns"
        if (width := _width(file)) != self.width and not self.names:
            problem = f"has {count(width, 'column')}, but {first!r} has {self.width}"
            raise DataError(f"{self.field}: {name!r} {problem}; {remedy}")
        lacks, more = ([each for each in some if each not in {*others}] for some, others in self._differing(file))
        if lacks or more:
            problem = f"lacks the column {lacks[0]!r}" if lacks else f"has the column {more[0]!r}"
            contrast = "has" if lacks else "lacks"
            raise DataError(f"{self.field}: {name!r} {problem}, which {first!r} {contrast}; {remedy}")

    def _differing(self, file: Records | JsonRows) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
        yield self.names, file.names
        yield file.names, self.names


def _width(file: Records | JsonRows) -> int:
    return file.width if isinstance(file, Records) else len(file.names)


def check_folders(names: Sequence[str], field: str) -> None:
    """Raises DataError if folders of files name columns, as those of Parquet files do."""
    for name in names:
        for folder in PurePosixPath(name).parts[:-1]:
            if "=" in folder:
                problem = f"the folder {folder!r} of {name!r} would be a column of Parquet or Arrow files; text files have none"
                raise DataError(f"{field}: {problem} of folders: rename the folder, or write the column into the files")
