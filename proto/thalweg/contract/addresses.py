"""Data that no client uploads: URLs in the place of a file's path, which workers read."""

import re
from urllib.parse import unquote, urlsplit, urlunsplit

from google.protobuf.descriptor import FieldDescriptor

from thalweg.contract.rules import HELD_OUT, rules_of
from thalweg.v1 import job_pb2

# What a URL may begin with.
SCHEMES = ("file", "https", "http", "s3", "gs")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(text: str) -> bool:
    """Whether a text is a URL, and not the path of a file of the client's."""
    return _URL.match(text) is not None


def named(data: job_pb2.Data | job_pb2.HeldOut, path: str = "data") -> dict[str, str]:
    """The paths and URLs that the source of data consists of, by their fields; none, if it is not of files.

    The data is that of a job, or samples that are held out, whose field is `path`.
    """
    source = data.WhichOneof("source")
    if source is None or not rules_of(data.DESCRIPTOR.fields_by_name[source]).file:
        return {}
    value = getattr(data, source)
    if isinstance(value, str):
        return {f"{path}.{source}": value}
    texts = [field.name for field in value.DESCRIPTOR.fields if field.type == FieldDescriptor.TYPE_STRING]
    return {f"{path}.{source}.{name}": getattr(value, name) for name in texts}


def urls_of(data: job_pb2.Data | job_pb2.HeldOut, path: str = "data") -> dict[str, str]:
    """The URLs among them."""
    return {field: text for field, text in named(data, path).items() if is_url(text)}


def sources_of(data: job_pb2.Data) -> dict[str, job_pb2.Data | job_pb2.HeldOut]:
    """What has a source in the data of a job, by its field: the data itself, and samples of their own that are held out."""
    parts = {f"data.{name}": getattr(data, name) for name in HELD_OUT}
    return {"data": data} | {path: part for path, part in parts.items() if part.WhichOneof("source")}


def public(url: str) -> str:
    """A URL without what may be secret in it, for messages: no user, no password, no query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def hide_secrets(data: job_pb2.Data | job_pb2.HeldOut) -> None:
    """Replaces the URLs of a source of data by what is public of them."""
    for field, url in urls_of(data).items():
        value = getattr(data, str(data.WhichOneof("source")))
        holder = data if isinstance(value, str) else value
        setattr(holder, field.rpartition(".")[2], public(url))


def mistake(url: str) -> str:
    """What is wrong with a URL; empty if nothing is."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        return "is not a URL; write it as https://host/path"
    if parts.scheme not in SCHEMES:
        return f"{parts.scheme}:// is not read; use one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
    if "@" in parts.netloc:
        return "holds a user or a password; leave them out: credentials come from the environment of workers"
    if ".." in unquote(parts.path).split("/"):
        return "has `..` in its path; write the path without it"
    if any(ord(character) <= 32 or ord(character) == 127 for character in url):
        return "holds a space or a control character; write it as in %20"
    if parts.scheme == "file":
        if host or not parts.path.startswith("/"):
            return "names a host; write file:// and an absolute path, as in file:///data/trips"
        return ""
    return "" if host else "names no host; write it as in https://host/path, s3://bucket/key or gs://bucket/key"
