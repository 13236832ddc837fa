"""A disk that forgets what was not synchronised, and on which a crash may come before or after each step."""

import errno
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class Crash(Exception):  # noqa: N818 - what happens, not an error
    """The server's machine goes down here."""


@dataclass(eq=False)
class _File:
    data: bytes
    durable: bytes | None = None


class ImaginaryDisk:
    """A file system as a crash leaves it: names and contents that were not synchronised may be there, in part, or not."""

    def __init__(self, random_: random.Random) -> None:
        self._random = random_
        self._files: dict[Path, _File] = {}
        self._durable: dict[Path, _File] = {}
        # There is no room, and nothing can be written for another reason.
        self.full = self.broken = False
        self.crash_after: int | None = None

    def step(self) -> None:
        """A moment at which the machine may go down, or at which the disk fails."""
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after < 0:
                self.crash_after = None
                raise Crash
        if self.broken:
            raise OSError(errno.EIO, "input/output error")

    def write(self, path: Path, pieces: Iterable[bytes | memoryview]) -> None:
        self.step()
        file = self._files[path] = _File(b"")
        room = self._random.randrange(3) if self.full else math.inf
        for number, piece in enumerate(pieces):
            if number >= room:
                file.data += bytes(piece[: len(piece) // 2])
                raise OSError(errno.ENOSPC, "no space left on device")
            file.data += bytes(piece)
            self.step()

    def synchronize(self, path: Path) -> None:
        self.step()
        file = self._files.get(path)
        if file:
            file.durable = file.data
        else:
            for name in [name for name in self._durable if name.parent == path]:
                del self._durable[name]
            self._durable |= {name: file for name, file in self._files.items() if name.parent == path}
        self.step()

    def rename(self, source: Path, target: Path) -> None:
        self.step()
        self._files[target] = self._files.pop(source)
        self.step()

    def remove(self, path: Path) -> None:
        self.step()
        self._files.pop(path, None)
        self.step()

    def read(self, path: Path) -> memoryview:
        if path not in self._files:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return memoryview(self._files[path].data)

    def names(self, folder: Path) -> list[str]:
        return [path.name for path in self._files if path.parent == folder]

    def make_folder(self, folder: Path) -> None:
        pass

    def forget(self, folder: Path) -> None:
        """All that is below a folder is gone, and stays gone."""
        for files in (self._files, self._durable):
            for path in [path for path in files if folder in path.parents]:
                del files[path]

    def replace(self, path: Path, target: Path, data: bytes) -> None:
        """Puts a file in the place of another one while nothing runs."""
        for files in (self._files, self._durable):
            files.pop(path, None)
            files[target] = _File(data, data)

    def below(self, folder: Path) -> list[Path]:
        """The files below a folder."""
        return sorted(path for path in self._files if folder in path.parents)

    def crash(self) -> None:
        """The machine goes down and comes back."""
        self.crash_after = None
        after: dict[Path, _File] = {}
        for path in sorted(self._files.keys() | self._durable.keys()):
            old, new = self._durable.get(path), self._files.get(path)
            # Of each name that was changed and not synchronised, either is found.
            file = old if old is new or self._random.random() < 0.5 else new
            if file:
                after[path] = _File(self._content(file))
                after[path].durable = after[path].data
        self._files = after
        self._durable = dict(after)

    def _content(self, file: _File) -> bytes:
        if file.durable == file.data:
            return file.data
        kept = self._random.randrange(len(file.data) + 1)
        return self._random.choice([file.durable or b"", file.data[:kept], file.data[:kept] + bytes(len(file.data) - kept)])

    def damage(self, folder: Path) -> None:
        """Turns a bit of the newest file in a folder."""
        path = max((path for path in self._files if path.parent == folder), default=None)
        if path and self._files[path].data:
            data = bytearray(self._files[path].data)
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
            self._files[path] = _File(bytes(data), bytes(data))
            self._durable[path] = self._files[path]
