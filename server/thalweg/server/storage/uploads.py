"""The files that were uploaded, each under the SHA-256 of its content. Everything here blocks, and uses no database."""

import hashlib
import os
import re
import time
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from thalweg.contract.manifests import SHA256
from thalweg.server.storage.disk import Disk, publish


class Removed(NamedTuple):
    """How many files were removed, and their size in bytes."""

    files: int
    size: int


class UploadFiles:
    """The uploads in a folder. Files that are being received lie beside them, under names of their own.

    Within `keep_seconds`, a client that uploads a file has to create a job that uses it, or to resume an upload that broke off.
    """

    def __init__(self, folder: Path, disk: Disk, keep_seconds: float) -> None:
        self._folder = folder
        self._disk = disk
        self.keep_seconds = keep_seconds
        folder.mkdir(exist_ok=True)
        # What a crash left, and cannot be resumed.
        for part in folder.glob("*.part"):
            if not re.fullmatch(SHA256, part.stem):
                part.unlink()

    def path(self, sha256: str) -> Path:
        """Where an upload lies, or would lie."""
        return self._folder / sha256

    def part(self, name: str) -> Path:
        """Where a file lies that is being received."""
        return self._folder / f"{name}.part"

    def whole(self, sha256: str) -> bool:
        """Whether an upload is there and undamaged. From now on it counts as new. Reads all of it; raises OSError."""
        try:
            with self.path(sha256).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    return False
            # Where a file of this machine is linked to, the link is what counts, and the file is its owner's.
            os.utime(self.path(sha256), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def exists(self, sha256: str) -> bool:
        """Whether an upload is there, damaged or not."""
        return self.path(sha256).exists()

    def in_place(self, sha256: str) -> Path | None:
        """Where other processes of this machine can read an upload."""
        return self.path(sha256).resolve()

    def received(self, name: str) -> int:
        """The number of bytes of a file that were received and are not an upload; 0 if there are none. Raises OSError."""
        try:
            return self.part(name).stat().st_size
        except FileNotFoundError:
            return 0

    def receive(self, name: str, data: bytes | memoryview) -> None:
        """Takes the next bytes of a file. `finish` makes it an upload; then, or else, `discard` clears up. Raises OSError.

        If its name is the SHA-256 of an upload, what was received outlives the server, and is removed as unused uploads are. It
        is not synchronised before: `finish` finds what a crash of the machine damaged. The file is open for as long as this
        takes only: of those that wait for more there may be many.
        """
        with self.part(name).open("ab") as file:
            file.write(data)

    def finish(self, name: str, sha256: str) -> bool:
        """Makes what was received an upload, in place of a damaged one. False if it has another SHA-256. Raises OSError."""
        with self.part(name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return False
        publish(self._disk, self.part(name), self.path(sha256))
        return True

    def discard(self, name: str) -> None:
        """Removes what was received and did not become an upload."""
        self.part(name).unlink(missing_ok=True)

    def read(self, sha256: str, start: int, size: int) -> bytes | None:
        """At most `size` bytes of an upload from a position; none at its end. None if there is no such upload. Raises OSError."""
        try:
            with self.path(sha256).open("rb") as file:
                file.seek(start)
                return file.read(size)
        except FileNotFoundError:
            return None

    def remove_unused(self, used: Container[str]) -> Removed:
        """Removes the uploads that came long ago and are not among those that are `used`, and parts of others. Raises OSError."""
        removed = Removed(0, 0)
        for path in self._folder.iterdir():
            if re.fullmatch(rf"{SHA256}(\.part)?", path.name) and path.name not in used:
                with suppress(FileNotFoundError):
                    # Of a link, what is freed is the link: the file is its owner's.
                    status = path.lstat()
                    if time.time() - status.st_mtime > self.keep_seconds:
                        path.unlink()
                        removed = Removed(removed.files + 1, removed.size + status.st_size)
        return removed
