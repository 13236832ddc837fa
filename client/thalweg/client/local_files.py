"""The files of a job that is computed on this machine, without a server."""

import hashlib
from pathlib import Path

from thalweg.client.files import reading
from thalweg.client.jobfile import JobFile
from thalweg.client.packing import pack
from thalweg.client.parts import entries_of, write_manifest


def local_files(job: JobFile, folder: Path) -> dict[str, Path]:
    """The files that a job needs, by their SHA-256, which its specification gets. What is made is written to `folder`.

    Raises ThalwegError if a file cannot be read, or the code cannot be packed.
    """
    files: dict[str, Path] = {}
    for field, message, given in job.uploads():
        if isinstance(given, Path):
            path = given
        else:
            sha256s = {name: _sha256(part, field) for name, part in given.items()}
            files |= {sha256s[name]: part for name, part in given.items()}
            path = write_manifest(entries_of(given, sha256s), folder / "manifest.json")
        message.sha256 = _sha256(path, field)
        files[message.sha256] = path
    if job.code:
        archive = pack(job.code, folder)
        job.spec.code.sha256 = _sha256(archive, "code.path")
        files[job.spec.code.sha256] = archive
    return files


def _sha256(path: Path, field: str) -> str:
    with reading(path, field), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
