"""Checks a backup, and makes a data folder of it. Everything here blocks."""

import hashlib
import shutil
from pathlib import Path

from thalweg.contract import backups
from thalweg.contract.backups import INCOMPLETE, MANIFEST, Manifest
from thalweg.contract.locks import FileLock, LockedError
from thalweg.server.storage.backup.copying import BackupError, Copies, Progress, synchronize
from thalweg.server.storage.tables import schema

# Names in a message.
_MAX_LISTED = 10
# Bytes that are read at a time.
_PIECE = 1 << 20


def check(backup: Path, progress: Progress = lambda _, __: None) -> Manifest:
    """Reads all of a backup. Raises BackupError if it is not as it was made, and names the files."""
    manifest = manifest_of(backup)
    done, problems = 0, _unknown(backup, manifest)
    for entry in manifest.files:
        digest, size = hashlib.sha256(), 0
        try:
            with (backup / entry.path).open("rb") as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
                    size += len(piece)
                    progress(done + size, manifest.size)
        except OSError as error:
            problems.append(f"{entry.path} cannot be read: {error.strerror}")
        else:
            if digest.hexdigest() != entry.sha256:
                problems.append(f"{entry.path} was changed: {size:,} bytes, of which the SHA-256 is not that of the backup")
        done += entry.size
    _refuse(backup, problems)
    return manifest


def restore(backup: Path, folder: Path, progress: Progress = lambda _, __: None) -> Manifest:
    """Makes a data folder of a backup, in an empty folder or one that does not exist, or where a restoration was killed.

    Until it is whole, no server uses it. Raises BackupError, and then has left nothing.
    """
    manifest = manifest_of(backup)
    if folder.resolve().is_relative_to(backup.resolve()):
        raise BackupError(f"{folder} is within the backup {backup}; choose another folder")
    made = not folder.exists()
    try:
        lock = _prepare(folder)
        try:
            _copy(backup, folder, manifest, progress)
            (folder / INCOMPLETE).unlink()
            synchronize(folder)
        except BaseException:
            _empty(folder)
            (folder / INCOMPLETE).unlink(missing_ok=True)
            if made:
                folder.rmdir()
            raise
        finally:
            lock.release()
    except OSError as error:
        raise BackupError(f"cannot restore to {folder}: {error.strerror} ({error.filename or folder})") from error
    return manifest


def manifest_of(backup: Path) -> Manifest:
    """The manifest of a backup. Raises BackupError if there is none, or if a newer release made it."""
    if backups.is_incomplete(backup):
        raise BackupError(f"{backup} is incomplete: the backup, or the restoration to it, did not end")
    try:
        manifest = backups.read((backup / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BackupError(f"{backup} is not a backup: it has no {MANIFEST}") from error
    except ValueError as error:
        raise BackupError(f"{backup / MANIFEST} cannot be used: {error}") from error
    if manifest.data_format > schema.FORMAT:
        raise BackupError(
            f"{backup} has the data format {manifest.data_format}, and was made by Thalweg {manifest.release}; this release "
            f"reads formats up to {schema.FORMAT}. Restore it with a release as new as that one"
        )
    return manifest


def _prepare(folder: Path) -> FileLock:
    """Makes a folder, or empties one that a restoration has left that was killed. Gives its lock."""
    if folder.exists() and not folder.is_dir():
        raise BackupError(f"{folder} is not a folder")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any(folder.iterdir()) and not backups.is_incomplete(folder):
        raise BackupError(f"{folder} is not empty; restore to a new folder")
    try:
        lock = FileLock.acquire(folder / INCOMPLETE)
    except LockedError as error:
        raise BackupError(f"another restoration to {folder} is under way") from error
    _empty(folder)
    return lock


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == INCOMPLETE:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _copy(backup: Path, folder: Path, manifest: Manifest, progress: Progress) -> None:
    copies, problems = Copies(backup, folder, progress), _unknown(backup, manifest)
    copies.total = manifest.size
    for entry in manifest.files:
        try:
            if copies.copy(entry.path) != entry:
                problems.append(f"{entry.path} was changed: its SHA-256 is not that of the backup")
        except FileNotFoundError:
            problems.append(f"{entry.path} is missing")
    _refuse(backup, problems)
    copies.settle()


def _unknown(backup: Path, manifest: Manifest) -> list[str]:
    known = {entry.path for entry in manifest.files} | {MANIFEST}
    found = (path.relative_to(backup).as_posix() for path in backup.rglob("*") if not path.is_dir())
    return [f"{path} is not a part of it" for path in sorted(found) if path not in known]


def _refuse(backup: Path, problems: list[str]) -> None:
    if problems:
        more = f"\nand {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        raise BackupError(f"{backup} is not as it was made:\n" + "\n".join(problems[:_MAX_LISTED]) + more)
