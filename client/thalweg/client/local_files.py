"""The files of a job that is computed on this machine, without a server."""

import hashlib
from pathlib import Path

from thalweg.client.files import reading
from thalweg.client.jobfile import JobFile
from thalweg.client.packing import pack


def local_files(job: JobFile, folder: Path) -> dict[str, Path]:
    """The files that a job needs, by their SHA-256, which its specification gets. Its code is packed into `folder`.

    Raises ThalwegError if a file cannot be read, or the code cannot be packed.
    """
    files: dict[str, Path] = {}
    for message, path in job.uploads():
        where = "data" if message is job.spec.data else "model.initial"
        with reading(path, f"{where}.{message.WhichOneof('source')}"):
            message.sha256 = _sha256(path)
        files[message.sha256] = path
    if job.code:
        archive = pack(job.code, folder)
        job.spec.code.sha256 = _sha256(archive)
        files[job.spec.code.sha256] = archive
    return files


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
