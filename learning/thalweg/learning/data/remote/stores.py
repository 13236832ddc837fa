"""Stores of objects, s3:// and gs://, with fsspec. Credentials and endpoints come from the environment."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Protocol

from thalweg.learning.data.errors import DataError
from thalweg.learning.data.remote.found import Found, check_folder, is_wanted, no_files
from thalweg.learning.data.remote.limits import Limits
from thalweg.learning.data.remote.retries import BrokenOffError, download, pause_or_raise
from thalweg.learning.errors import NodeError

_BLOCK = 8 << 20
# Names of errors about credentials, which differ between stores.
_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "TokenRetrievalError")

# What a store says of an object: its name, size, type, and what changes with it.
Info = Mapping[str, object]


class Store(Protocol):
    """What is used of a file system of fsspec."""

    def info(self, path: str) -> Info:
        """What is known of one object or folder."""

    def find(self, path: str, *, detail: bool) -> Mapping[str, Info]:
        """The objects below a folder by their names."""

    def glob(self, path: str, *, detail: bool) -> Mapping[str, Info]:
        """The objects of a pattern by their names."""

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        """Some bytes of an object."""


def find(field: str, url: str, endings: Sequence[str], limits: Limits) -> list[Found]:
    """The object, those below a folder or those of a pattern with `*`, with their sizes and ETags.

    Raises DataError if there are none, and NodeError if this node cannot read them.
    """
    limits.check_url(field, url)
    scheme, _, path = url.partition("://")
    store = _store(field, scheme)
    subject = f"{field}: {url}"
    failed = 0
    while True:
        try:
            with _errors(subject):
                below, found = _listed(store, path.rstrip("/"))
                break
        except BrokenOffError as error:
            failed += 1
            pause_or_raise(subject, failed, str(error))
    if below is None:
        return [_found(store, field, scheme, path.rpartition("/")[2], each) for each in found]
    if "*" not in path:
        check_folder(field, url, endings)
    named = [(str(each["name"]).removeprefix(below).lstrip("/"), each) for each in found]
    wanted = [(name, each) for name, each in named if "*" in path or is_wanted(name, endings)]
    if not wanted:
        raise DataError(f"{field}: {no_files(url, () if '*' in path else endings)}")
    return [_found(store, field, scheme, name, each)._replace(name_in_folder=True) for name, each in wanted]


def _store(field: str, scheme: str) -> Store:
    try:
        import fsspec  # noqa: PLC0415 - an extra

        store: Store = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
        return store
    except ImportError as error:
        raise NodeError(f"{field}: {scheme}:// needs a package on this node; pip install 'thalweg[{scheme}]'") from error


def _listed(store: Store, path: str) -> tuple[str | None, list[Info]]:
    """The folder of what is found, None for a single object, and what the store says of each object."""
    if "*" in path:
        below = path.partition("*")[0].rpartition("/")[0]
        found = store.glob(path, detail=True)
    else:
        info = store.info(path)
        if info["type"] == "file":
            return None, [info]
        below, found = path, store.find(path, detail=True)
    return below, [found[name] for name in sorted(found) if found[name]["type"] == "file"]


def _found(store: Store, field: str, scheme: str, name: str, info: Info) -> Found:
    url, size, tag = f"{scheme}://{info['name']}", int(str(info["size"])), _tag(info)
    return Found(name, url, size, tag, fill=partial(_fill, store, f"{field}: {url}", str(info["name"]), size, tag))


def _tag(info: Info) -> str:
    return str(info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("updated") or "")


def _fill(store: Store, subject: str, name: str, size: int, tag: str, path: Path) -> None:
    """Downloads an object. Raises DataError if it has changed since it was found, and NodeError if it cannot be read."""

    def attempt(file: IO[bytes]) -> None:
        start = file.seek(0, 2)
        while start < size:
            with _errors(subject):
                block = store.cat_file(name, start=start, end=min(start + _BLOCK, size))
            if not block:
                raise _changed(subject)
            file.write(block)
            start += len(block)
        with _errors(subject):
            now = store.info(name)
        if (int(str(now["size"])), _tag(now)) != (size, tag):
            raise _changed(subject)

    download(subject, path, size, attempt)


def _changed(subject: str) -> DataError:
    return DataError(f"{subject} has changed while it was read; submit the job again")


@contextmanager
def _errors(subject: str) -> Iterator[None]:
    """Turns a store's errors into DataError, if no worker can escape them, NodeError, and BrokenOffError, if they may pass."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{subject} does not exist") from error
    except PermissionError as error:
        raise NodeError(f"{subject} may not be read with the credentials in the environment of this node: {error}") from error
    except Exception as error:
        if type(error).__name__ in _CREDENTIALS:
            raise NodeError(f"{subject} cannot be read, because this node's environment has no credentials for it") from error
        if isinstance(error, OSError) or type(error).__module__.startswith(("botocore", "aiohttp", "gcsfs", "google", "fsspec")):
            raise BrokenOffError(str(error) or type(error).__name__) from error
        raise
