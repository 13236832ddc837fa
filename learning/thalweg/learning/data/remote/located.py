"""Data at URLs: found and, if it is not on this machine, downloaded. What is at a URL then is an upload to sources.

`file://` is read where it is, http and https are read with the standard library, and stores of objects with fsspec.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from thalweg.contract import addresses, manifests
from thalweg.contract.resources import size_text
from thalweg.contract.rules import rules_of
from thalweg.learning.data.access import Access, Fill
from thalweg.learning.data.errors import DataError
from thalweg.learning.data.remote import http, local, stores
from thalweg.learning.data.remote.found import Found
from thalweg.v1 import job_pb2

# Of what is kept for others.
_FORMAT = 1
# The most bytes of what is known of single files: it travels with the model.
_MAX_KNOWN = 1 << 16
# Of a digest: enough to tell a file's states apart.
_STATE = 16
_FINDERS = {"file": local.find, "http": http.find, "https": http.find, "s3": stores.find, "gs": stores.find}


class Located(NamedTuple):
    """Data whose `sha256` stands for what is at its URLs, and an access that knows it; what identifies the files' state.

    `files` are for messages about those that change later, and empty if they are too many to travel with the model. Data without
    URLs is as it was, and the fingerprint empty.
    """

    data: job_pb2.Data
    access: Access
    fingerprint: str
    files: tuple[job_pb2.DataFile, ...] = ()


def located(data: job_pb2.Data, access: Access) -> Located:
    """Finds what is at the URLs of data, and downloads it to the node's cache, if it is not there.

    So are samples of their own that are held out. Raises DataError if a URL cannot be read by any worker, and NodeError if this
    one cannot read it.
    """
    places = {path: part for path, part in addresses.sources_of(data).items() if addresses.urls_of(part)}
    if not places:
        return Located(data, access, "")
    copy = job_pb2.Data()
    copy.CopyFrom(data)
    source = str(data.WhichOneof("source"))
    paths: dict[str, Path] = {}
    fingerprints, known = [], list[job_pb2.DataFile]()
    for path, part in addresses.sources_of(copy).items():
        if path in places:
            fingerprints.append(_find(part, path, source, access, paths, known))
    fingerprint = fingerprints[0] if [*places] == ["data"] else _digest("places", *places, *fingerprints)
    told = tuple(known) if sum(file.ByteSize() for file in known) <= _MAX_KNOWN else ()
    return Located(copy, _Located(access, paths), fingerprint, told)


def _find(
    part: job_pb2.Data | job_pb2.HeldOut,
    path: str,
    source: str,
    access: Access,
    paths: dict[str, Path],
    known: list[job_pb2.DataFile],
) -> str:
    """Finds what is at the URLs of a part of a job's data, whose field is `path`. Gives the fingerprint, the part's SHA-256 then.

    `paths` gets the files, by what stands for their SHA-256s, and `known` their states. Later, the URLs are for messages alone.
    """
    urls = addresses.urls_of(part, path)
    endings = tuple(rules_of(job_pb2.Data.DESCRIPTOR.fields_by_name[source]).folder)
    found: list[Found] = []
    for field, url in urls.items():
        if wrong := addresses.mistake(url):
            raise DataError(f"{field}: {wrong}")
        files = _FINDERS[url.partition("://")[0]](field, url, endings, access.limits)
        # Samples that are held out may lack a class.
        if field == "data.images" and url.startswith("file://"):
            local.check_classes(field, url, files)
        if len(urls) > 1 and (len(files) > 1 or files[0].name_in_folder):
            raise DataError(f"{field}: {addresses.public(url)} names several files; it must be one")
        found += [file._replace(name=field.rpartition(".")[2]) for file in files] if len(urls) > 1 else files
    if len(found) > manifests.MAX_FILES:
        most = f"at most {manifests.MAX_FILES:,}"
        raise DataError(f"{path}.{part.WhichOneof('source')}: there are {len(found):,} files; write fewer, larger ones ({most})")
    found.sort()
    entries = []
    for number, file in enumerate(found, 1):
        key = _digest("file", *file.identity)
        count = f" (file {number:,} of {len(found):,})" if len(found) > 1 else ""
        paths[key] = file.path or access.made(f"url-{_FORMAT}-{key}", _downloading(access, file, count))
        entries.append(manifests.Entry(file.name, file.size, key))
        known.append(job_pb2.DataFile(url=addresses.public(file.url), size=file.size, state=key[:_STATE]))
    fingerprint = _digest("files", *(entry.sha256 for entry in entries))
    if len(found) > 1 or found[0].name_in_folder or len(urls) > 1:
        manifest = manifests.written(entries)
        paths[fingerprint] = access.made(f"manifest-{_FORMAT}-{fingerprint}", lambda file: _write(file, manifest))
    else:
        paths[fingerprint] = paths[entries[0].sha256]
    part.sha256 = fingerprint
    addresses.hide_secrets(part)
    return fingerprint


class _Located:
    """An access that gives what is at URLs, too."""

    def __init__(self, access: Access, paths: Mapping[str, Path]) -> None:
        self._access = access
        self._paths = paths
        self.limits = access.limits
        self.made = access.made
        self.faster = access.faster
        self.doing = access.doing

    def upload(self, sha256: str) -> Path:
        """The file with a SHA-256, or at a URL."""
        return self._paths[sha256] if sha256 in self._paths else self._access.upload(sha256)


def _downloading(access: Access, file: Found, count: str) -> Fill:
    """Fills a file, and says so."""
    what, size = f"downloading {addresses.public(file.url)}", size_text(file.size)

    def fill(path: Path) -> None:
        def progress() -> str:
            return f"{what}: {size_text(path.stat().st_size if path.exists() else 0)} of {size}{count}"

        with access.doing(f"{what}, {size}{count}", progress):
            file.fill(path)

    return fill


def _digest(*parts: str | int) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
