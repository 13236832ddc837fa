"""Text files as they are stored: in which encoding, and compressed or not."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO, cast

from thalweg.contract.encoding import UTF8, why_not_utf8
from thalweg.learning.data.errors import DataError
from thalweg.learning.data.sources.extras import require_pyarrow
from thalweg.learning.data.sources.text_tables.words import Words

_GZIP, _XZ, _ZSTANDARD = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
# The first letters alone may be the name of a column.
_BZIP2 = [b"BZh%d1AY&SY" % level for level in range(1, 10)]
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Other formats that are often called .csv, by their first bytes.
_FOREIGN = {
    b"PK\x03\x04": "is a zip archive or an Excel workbook; unpack it, or export the table as CSV",
    b"\xd0\xcf\x11\xe0": "is an Excel workbook; export the table as CSV",
    b"PAR1\x15": "is a Parquet file; export the table as CSV",
    b"\x93NUMPY": "is a NumPy array, not a table",
}


def _zstandard(path: Path) -> IO[bytes]:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    return cast("IO[bytes]", pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))


_UNPACKED: dict[bytes, Callable[[Path], IO[bytes]]] = {
    _GZIP: lambda path: cast("IO[bytes]", gzip.GzipFile(path)),
    _XZ: lzma.LZMAFile,
    _ZSTANDARD: _zstandard,
    **dict.fromkeys(_BZIP2, bz2.BZ2File),
}


class TextFile:
    """A text file, which can be opened several times. Messages speak in `words`, and call it `name`.

    `encoding` is None if it is to be found: that of a mark at the beginning, or else UTF-8. Raises DataError if the file is of
    another format, NodeError if pyarrow is needed and missing, and OSError.
    """

    def __init__(self, path: Path, words: Words, name: str, encoding: str | None = None) -> None:
        self._path = path
        self._words = words
        self.name = name
        with path.open("rb") as file:
            start = file.read(16)
        for magic, problem in _FOREIGN.items():
            if start.startswith(magic):
                raise DataError(f"{words.field}: {name!r} {problem}")
        self._unpacked = next((unpacked for magic, unpacked in _UNPACKED.items() if start.startswith(magic)), None)
        self.compressed = self._unpacked is not None
        if self._unpacked is _zstandard:
            require_pyarrow(f"{words.field}: {name!r} is compressed with Zstandard")
        self._told = encoding is not None
        self.state = self._now()
        if encoding is None:
            with self._errors(), self._bytes() as file:
                encoding = "utf-16" if file.read(2) in _MARKS else "utf-8"
        self._encoding = UTF8 if encoding == "utf-8" else encoding

    @property
    def encoding(self) -> str:
        """The encoding, whether the file has a mark or not."""
        return self._encoding.removesuffix("-sig")

    @contextmanager
    def opened(self) -> Iterator[TextIO]:
        """The text from its beginning, its line ends as they are.

        Within the context, what is wrong with the encoding or the compression raises DataError.
        """
        with self._errors(), self._bytes() as file, io.TextIOWrapper(file, self._encoding, newline="") as text:
            yield text

    def check(self) -> None:
        """Raises DataError if the file has changed since it was opened first, so that two passes saw different rows."""
        if self._now() != self.state:
            raise DataError(
                f"{self._words.field}: {self.name!r} has changed while it was read; restore the file, or submit the job again"
            )

    def _now(self) -> tuple[int, ...]:
        found = self._path.stat()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _bytes(self) -> IO[bytes]:
        return self._unpacked(self._path) if self._unpacked else self._path.open("rb")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        subject = f"{self._words.field}: {self.name!r}"
        try:
            yield
        except UnicodeError as error:
            if self._told or self._encoding != UTF8:
                remedy = ("save it in that encoding" if self._told else "save it as UTF-8") + self._words.setting(
                    "its own data.encoding"
                )
                raise DataError(f"{subject} is not text in {self._encoding.removesuffix('-sig')}: {error}; {remedy}") from None
            advice = "save it as UTF-8" + self._words.setting('data.encoding, such as "windows-1252"')
            if self.compressed:
                raise DataError(f"{subject} is not UTF-8 text; {advice}") from None
            raise DataError(f"{subject} {why_not_utf8(self._path).replace('save it as UTF-8', advice)}") from None
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise DataError(f"{subject} cannot be decompressed: {error}; it is damaged, write or copy it again") from error
        except OSError as error:
            # Decompressors give no number of the system's.
            if error.errno is not None or not self.compressed:
                raise
            raise DataError(f"{subject} cannot be decompressed: {error}; it is damaged, write or copy it again") from error
