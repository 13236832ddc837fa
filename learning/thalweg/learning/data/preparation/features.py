"""What the rows of a table become: features, as their recipe says, in double precision first and then of the job's dtype."""

import math
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.preparation.cells import ROWS_AT_ONCE, categories, numbers, read
from thalweg.learning.data.preparation.plans import HASH, LOG, ONE_HOT, ORDINAL, Planned
from thalweg.learning.data.preparation.recipes import width
from thalweg.learning.data.preparation.summaries import row_blocks
from thalweg.learning.data.rows import Indices, Positions, positions
from thalweg.learning.data.tables import Cells, Table
from thalweg.v1 import job_pb2

_DAY, _WEEK, _YEAR = 86_400.0, 7 * 86_400.0, 365.2425 * 86_400.0
# 1970 began on a Thursday.
_TO_MONDAY = 3 * _DAY

# Is called with the name of a column and categories of cells that the recipe does not know.
Unknown = Callable[[str, Sequence[str]], object]


class _Part(NamedTuple):
    """How a column is prepared, and where its features are."""

    recipe: job_pb2.PreparedColumn
    where: slice
    known: dict[str, int]


class FeatureRows:
    """The features of some rows of a table, shape (rows, features), which are read and prepared when they are taken.

    A category that was not in the training samples has no 1 among the features of `one_hot`; for `ordinal` it is the number of
    the categories. `unknown` is called for such. Taking rows raises DataError if cells cannot be read, or a value is missing that
    nothing replaces.
    """

    def __init__(
        self,
        table: Table,
        rows: Positions,
        columns: Sequence[Planned],
        recipe: Sequence[job_pb2.PreparedColumn],
        dtype: np.dtype[np.floating],
        unknown: Unknown = lambda *_: None,
    ) -> None:
        self._table = table
        self._rows = rows
        self._columns = columns
        self.unknown = unknown
        self._parts: list[_Part] = []
        end = 0
        for prepared in recipe:
            known = {text: index for index, text in enumerate(prepared.categories)}
            self._parts.append(_Part(prepared, slice(end, end := end + width(prepared)), known))
        self.dtype: np.dtype[Any] = dtype
        self.shape = (len(rows), end)

    def __len__(self) -> int:
        """The number of rows."""
        return self.shape[0]

    def __getitem__(self, indices: Indices) -> NDArray[Any]:
        """The features of some of the rows."""
        chosen = self._rows[indices]
        features = np.empty((len(chosen), self.shape[1]), self.dtype)
        for start in range(0, len(chosen), ROWS_AT_ONCE):
            self._prepare(chosen[start : start + ROWS_AT_ONCE], features[start : start + ROWS_AT_ONCE])
        return features

    def _prepare(self, rows: NDArray[np.intp], out: NDArray[Any]) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            for part, cells in zip(self._parts, read(self._table, rows, self._columns), strict=True):
                self._features(part, rows, cells, out[:, part.where])

    def _features(self, part: _Part, rows: NDArray[np.intp], cells: Cells, out: NDArray[Any]) -> None:
        recipe, missing = part.recipe, cells.missing
        if missing is not None and not (recipe.HasField("fill") or recipe.HasField("fill_text")):
            if missing.any():
                where = self._table.where(int(rows[np.argmax(missing)]))
                raise DataError(
                    f"data: {self._table.name!r}: {where}, column {recipe.name!r} has no value, and the job does not say what "
                    "replaces one; fill it in, or train with data.missing"
                )
            missing = None
        if recipe.prepare in (ONE_HOT, ORDINAL, HASH):
            self._categories(part, cells._replace(missing=missing), out)
            return
        values = numbers(cells)
        if missing is not None:
            values[missing] = recipe.fill
        if recipe.prepare == LOG:
            if len(values) and values.min() <= -1:
                where = self._table.where(int(rows[np.argmin(values)]))
                problem = f"column {recipe.name!r} holds {values.min():.15g}, which has no log(1 + x)"
                raise DataError(f"data: {self._table.name!r}: {where}, {problem}; correct it, or prepare it otherwise")
            out[:, 0] = np.log1p(values)
            return
        out[:, 0] = (values - recipe.shift) / recipe.scale
        if recipe.prepare == "calendar":
            for index, (period, shift) in enumerate(((_DAY, 0.0), (_WEEK, _TO_MONDAY), (_YEAR, 0.0))):
                angle = 2 * np.pi * (np.mod(values + shift, period) / period)
                out[:, 1 + 2 * index], out[:, 2 + 2 * index] = np.sin(angle), np.cos(angle)

    def _categories(self, part: _Part, cells: Cells, out: NDArray[Any]) -> None:
        recipe = part.recipe
        positions, missing, words = categories(cells)
        if missing is not None:
            words = (*words, recipe.fill_text)
            positions = np.where(missing, len(words) - 1, positions)
        if recipe.prepare == HASH:
            found = np.fromiter((bucket(word, recipe.buckets) for word in words), np.intp, len(words))[positions]
        else:
            unknown = len(part.known)
            found = np.fromiter((part.known.get(word, unknown) for word in words), np.intp, len(words))[positions]
            if (strange := found == unknown).any():
                self.unknown(recipe.name, [words[position] for position in positions[strange].tolist()])
        if recipe.prepare == ORDINAL:
            out[:, 0] = found
            return
        out[...] = 0
        known = np.flatnonzero(found < out.shape[1])
        out[known, found[known]] = 1


def bucket(text: str, buckets: int) -> int:
    """The bucket of a category: its CRC-32 as UTF-8 (as of zlib), modulo their number."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) % buckets


class Strangers:
    """Counts the categories that a recipe does not know."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def __call__(self, column: str, texts: Sequence[str]) -> None:
        """Counts some."""
        self._counts.setdefault(column, Counter()).update(texts)

    @property
    def notices(self) -> list[str]:
        """A sentence for each column that has such categories."""
        found = []
        for column, counts in self._counts.items():
            examples = ", ".join(f"{text!r}" for text, _ in counts.most_common(3))
            rows, several = counts.total(), len(counts) > 3
            found.append(
                f"column {column!r}: {rows:,} cell{'' if rows == 1 else 's'} with categories that were not in the training data, "
                f"{'such as ' if several else ''}{examples}; the model knows none of them"
            )
        return found


class EachRow:
    """The positions of all rows of a table."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def __len__(self) -> int:
        """The number of rows."""
        return self._rows

    def __getitem__(self, indices: Indices) -> NDArray[np.intp]:
        """Some of the positions."""
        return positions(indices, self._rows)


class TargetRows:
    """The targets of some rows of a table, which are read when they are taken, as numbers or labels.

    Shape (rows), or (rows, targets) if there are several; int64 for labels, otherwise float64, or as in the table if nothing
    is to be done.
    """

    def __init__(
        self, table: Table, rows: Positions, columns: Sequence[Planned], recipe: Sequence[job_pb2.PreparedTarget]
    ) -> None:
        self._table = table
        self._rows = rows
        self._columns = columns
        self._recipe = recipe
        self._labels = [{name: label for label, name in enumerate(target.classes)} for target in recipe]
        self.dtype = self[:0].dtype
        self.shape = (len(rows),) if len(columns) == 1 else (len(rows), len(columns))

    def __len__(self) -> int:
        """The number of rows."""
        return self.shape[0]

    def __getitem__(self, indices: Indices) -> NDArray[Any]:
        """The targets of some of the rows."""
        chosen = self._rows[indices]
        parts = [self._block(rows) for rows in row_blocks(chosen)] or [self._block(chosen)]
        return np.concatenate(parts)

    def _block(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        columns = zip(self._recipe, self._labels, read(self._table, rows, self._columns), strict=True)
        found = [self._values(target, labels, cells, rows) for target, labels, cells in columns]
        return found[0] if len(found) == 1 else np.column_stack(found)

    def _values(
        self, target: job_pb2.PreparedTarget, labels: dict[str, int], cells: Cells, rows: NDArray[np.intp]
    ) -> NDArray[Any]:
        if labels:
            positions, _, words = categories(cells)
            # Words of other rows may be among them.
            found = np.fromiter((labels.get(word, -1) for word in words), np.int64, len(words))[positions]
            if (unknown := np.flatnonzero(found < 0)).size:
                where, word = self._table.where(int(rows[unknown[0]])), words[positions[unknown[0]]]
                problem = f"column {target.name!r} has the class {word!r}, which the job's data does not have"
                raise DataError(
                    f"data: {self._table.name!r}: {where}, {problem}; correct it, or add samples of this class to the job's data"
                )
            return found
        if target.prepare == LOG:
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.log1p(numbers(cells))
        if (target.shift, target.scale) == (0, 1):
            return cells.values
        return (numbers(cells) - target.shift) / target.scale


def in_own_units(recipe: Sequence[job_pb2.PreparedTarget], outputs: NDArray[Any]) -> NDArray[Any]:
    """A model's outputs for targets that were prepared, shape (rows, ...), as the targets were before."""
    if all(not target.prepare or target.prepare == "none" for target in recipe):
        return outputs
    flat = outputs.reshape(len(outputs), math.prod(outputs.shape[1:])).astype(np.float64)
    if flat.shape[1] != len(recipe):
        return outputs
    for index, target in enumerate(recipe):
        values = flat[:, index]
        flat[:, index] = np.expm1(values) if target.prepare == LOG else values * target.scale + target.shift
    return flat.astype(outputs.dtype).reshape(outputs.shape)
