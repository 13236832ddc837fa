"""On which lines of a file, or of several, the rows of a table are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# A line of one of several files is a number that has the file's above these bits.
_BITS = 40


def numbered(lines: Sequence[int], file: int) -> Sequence[int]:
    """Lines of one of several files."""
    return [line + (file << _BITS) for line in lines]


def place(line: int, files: Sequence[str]) -> str:
    """A line, for messages; with the name of its file, if there are several."""
    return f"line {line & ((1 << _BITS) - 1)}" + (f" of {files[line >> _BITS]!r}" if files else "")


class Lines:
    """The lines of rows that are added in their order: kept as the rows at which the distance from row to line changes.

    `files` are the names of several files.
    """

    def __init__(self, changes: NDArray[np.int64] | None = None, files: Sequence[str] = ()) -> None:
        self._files = files
        self._parts = [] if changes is None else [changes]
        self._distance = 0 if changes is None or not len(changes) else int(changes[-1, 1])
        self._rows = 0

    def add(self, lines: Sequence[int]) -> None:
        """Adds the lines of further rows."""
        distances = np.asarray(lines, np.int64) - np.arange(self._rows, self._rows + len(lines))
        changed = np.flatnonzero(np.diff(distances, prepend=self._distance))
        if len(changed):
            self._parts.append(np.column_stack([self._rows + changed, distances[changed]]))
            self._distance = int(distances[-1])
        self._rows += len(lines)

    @property
    def changes(self) -> NDArray[np.int64]:
        """Rows, each with the distance to its line, shape (changes, 2)."""
        return np.concatenate(self._parts) if self._parts else np.empty((0, 2), np.int64)

    def where(self, row: int) -> str:
        """Where a row is, for messages."""
        changes = self.changes
        return place(row + int(changes[np.searchsorted(changes[:, 0], row, side="right") - 1, 1]), self._files)
