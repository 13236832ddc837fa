"""Archives of code, which strangers may have made: unpacked into a folder, without being run, or refused.

An archive is a zip file. What its headers say is not relied on: what is really unpacked is counted.
"""

import hashlib
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from thalweg.contract.code import MAX_ARCHIVE_BYTES, MAX_FILES, MAX_UNPACKED_BYTES, is_file_name
from thalweg.contract.resources import size_text
from thalweg.contract.text import visible
from thalweg.learning.errors import MistakeError

_PIECE_BYTES = 1 << 20
# Of a name that is refused, what is shown.
_MAX_SHOWN = 100
# The end of a zip file: its directory's number of entries, size and place are at 10, 12 and 16, the length of a comment at 20.
_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
# Before it, where a zip file is larger than any archive of code.
_LARGE = struct.Struct("<4sLQL")
_LARGE_SIGNATURE = b"PK\x06\x07"
# A file's entry in the directory has 46 bytes besides names and such.
_MAX_DIRECTORY_BYTES = MAX_FILES * 512
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1
_WRONG = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError, RuntimeError)


class Archive:
    """An archive whose content has a SHA-256, and whose names are harmless.

    Raises MistakeError, with `field` first, if it is not right. `max_bytes` is how many bytes its files may have in all.
    """

    def __init__(self, file: BufferedReader, sha256: str, field: str, max_bytes: int = MAX_UNPACKED_BYTES) -> None:
        self._field = field
        self._max_bytes = self._left = max_bytes
        size = os.fstat(file.fileno()).st_size
        if size > MAX_ARCHIVE_BYTES:
            raise self._refused(f"has {size_text(size)}; at most {size_text(MAX_ARCHIVE_BYTES)} are allowed")
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise self._refused(f"has the SHA-256 {found}, not {sha256}; submit the job again, which uploads it again")
        self._check_end(file, size)
        try:
            self._zip = zipfile.ZipFile(file)
            entries = self._zip.infolist()
        except _WRONG as error:
            raise self._refused("is not a zip file") from error
        if len(entries) > MAX_FILES:
            raise self._refused(f"has {len(entries):,} files; at most {MAX_FILES:,} are allowed")
        for entry in entries:
            self._check(entry)
        # Folders need no entry of their own.
        self._files = {entry.filename: entry for entry in entries if not entry.is_dir()}
        if len(self._files) < sum(not entry.is_dir() for entry in entries):
            raise self._refused("has two files of the same name")

    def unpack(self, folder: Path) -> None:
        """Writes the files into a folder that is empty and nobody else's, for reading only.

        Raises OSError if the folder cannot be written.
        """
        self._left = self._max_bytes
        for name, entry in self._files.items():
            path = folder / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444)
            except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                raise self._refused(f"has a file and a folder of the same name: {visible(name)}") from error
            with os.fdopen(descriptor, "wb") as file:
                for piece in self._read(entry):
                    file.write(piece)
        for path in [folder, *filter(Path.is_dir, folder.rglob("*"))]:
            path.chmod(0o555)

    def is_in(self, folder: Path) -> bool:
        """Whether a folder has the archive's files, unchanged, and no others."""
        self._left = self._max_bytes
        there = {
            path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
        }
        if there.keys() != self._files.keys():
            return False
        for name, path in there.items():
            if not stat.S_ISREG(path.lstat().st_mode):
                return False
            with path.open("rb") as file:
                if not all(file.read(len(piece)) == piece for piece in self._read(self._files[name])) or file.read(1):
                    return False
        return True

    def _read(self, entry: zipfile.ZipInfo) -> Iterator[bytes]:
        """What a file holds, in pieces. The bytes of all files are counted."""
        try:
            with self._zip.open(entry) as file:
                while piece := file.read(_PIECE_BYTES):
                    self._left -= len(piece)
                    if self._left < 0:
                        raise self._refused(f"unpacks to too much: its files may have {size_text(self._max_bytes)} in all")
                    yield piece
        except MistakeError:
            raise
        except _WRONG as error:
            raise self._refused(f"is damaged: {visible(entry.filename)} cannot be unpacked") from error

    def _check_end(self, file: BufferedReader, size: int) -> None:
        """Looks at the end of the file before anybody reads the directory that it tells of, which could fill the memory."""
        file.seek(max(0, size - _LARGE.size - _END.size))
        end = file.read()
        file.seek(0)
        if len(end) < _END.size or end[-_END.size :][:4] != _END_SIGNATURE or end[-2:] != b"\0\0":
            raise self._refused("is not a zip file")
        directory = _END.unpack(end[-_END.size :])[5]
        if end[: -_END.size].startswith(_LARGE_SIGNATURE) or directory > _MAX_DIRECTORY_BYTES:
            raise self._refused(f"has too many files; at most {MAX_FILES:,} are allowed")

    def _check(self, entry: zipfile.ZipInfo) -> None:
        """Refuses an entry that would be written elsewhere than below the folder, or is neither a file nor a folder."""
        name = entry.filename
        told = f"has an entry that is refused, '{visible(entry.orig_filename, _MAX_SHOWN)}'"
        if entry.orig_filename != name or not is_file_name(name.removesuffix("/")):
            raise self._refused(f"{told}: its name is not a relative path of plain names")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
            raise self._refused(f"{told}: it is a link or a device")
        if entry.flag_bits & _ENCRYPTED or entry.compress_type not in _METHODS:
            raise self._refused(f"{told}: it is encrypted, or packed in an unusual way")

    def _refused(self, problem: str) -> MistakeError:
        return MistakeError(f"{self._field}: the archive of the job's code {problem}")
