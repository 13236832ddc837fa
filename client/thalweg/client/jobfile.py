"""Job specifications from what users write: the name of a packaged job, the path of a TOML file, or a dictionary.

A field of a job is defined once, in `job.proto`; everything here reaches it through protobuf's JSON mapping. Defaults and bounds
are the server's to fill in and to check.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from thalweg.client.folders import expanded
from thalweg.client.mapping import Walk, values_of
from thalweg.client.problems import JobFileError
from thalweg.client.settings import lay_over, read_settings
from thalweg.contract.errors import Violation, invalid
from thalweg.v1 import job_pb2

Settings = Mapping[str, Any] | Iterable[str]
JobSource = str | Path | Mapping[str, Any] | job_pb2.JobSpec

_FILES = ("npz", "csv")
_SOURCES = [f"data.{field.name}" for field in job_pb2.Data.DESCRIPTOR.oneofs_by_name["source"].fields]


@dataclass(frozen=True)
class JobFile:
    """A specification, and the file on this machine that its data lies in, None for built-in data."""

    spec: job_pb2.JobSpec
    data: Path | None


def packaged_jobs() -> list[str]:
    """The names of the jobs that come with the package."""
    folder = resources.files("thalweg.client") / "jobs"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_job(job: JobSource, settings: Settings = ()) -> JobFile:
    """The specification of a job, with settings laid over it.

    `job` is the name of a packaged job, the path of a TOML file, a mapping of the same shape, or a specification as such.
    `settings` are texts `PATH=VALUE` or a mapping of paths to values. Relative paths of data are relative to the job file's
    folder, in settings and mappings to the current one. Raises ThalwegError with every fault that can be seen without a server.
    """
    source, document, folder = _document(job)
    values = _walked(document, source)
    for setting in read_settings(settings):
        lay_over(values, job_pb2.JobSpec.DESCRIPTOR, setting)
        # The next one finds tables where it looks for them.
        values = _walked(values, "")
        if setting.path in _SOURCES:
            # Other data: what was uploaded before has nothing to do with it,
            values["data"].pop("sha256", None)
        if setting.path in {"data", *_SOURCES}:
            # nor has the job file's folder.
            folder = Path()
    spec = json_format.ParseDict(values, job_pb2.JobSpec())
    return JobFile(spec, _data_file(spec.data, folder))


def _walked(document: Any, source: str) -> dict[str, Any]:
    walk = Walk()
    values = walk.message(job_pb2.JobSpec.DESCRIPTOR, document)
    if walk.violations:
        raise JobFileError(source, tuple(walk.violations))
    return values


def _document(job: JobSource) -> tuple[str, Any, Path]:
    """A job's values, where they come from, and the folder that its paths start from."""
    if isinstance(job, job_pb2.JobSpec):
        return "", values_of(job), Path()
    if isinstance(job, Mapping):
        return "", job, Path()
    if isinstance(job, str) and job in packaged_jobs():
        text = (resources.files("thalweg.client") / "jobs" / f"{job}.toml").read_text(encoding="utf-8")
        return job, tomllib.loads(text), Path()
    path = expanded(job)
    return str(job), _read_toml(path, str(job)), path.parent


def _read_toml(path: Path, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise invalid(Violation(name, _not_found(name))) from None
    except OSError as error:
        raise invalid(Violation(name, f"cannot be read: {error.strerror}")) from error
    except UnicodeDecodeError as error:
        raise invalid(Violation(name, "is not a TOML file: it is not UTF-8 text")) from error
    except ValueError as error:
        problem, _, where = str(error).partition(" (at ")
        place = re.match(r"line (\d+), column (\d+)", where)
        raise invalid(Violation(f"{name}, line {place[1]}, column {place[2]}" if place else name, problem)) from error


def _not_found(name: str) -> str:
    names = packaged_jobs()
    close = get_close_matches(name, names, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"there is no such file, and no packaged job of this name{hint} (packaged jobs: {', '.join(names)})"


def _data_file(data: job_pb2.Data, folder: Path) -> Path | None:
    """The file that a job learns from. Raises ThalwegError if it is not there."""
    kind = data.WhichOneof("source")
    # Data that was uploaded before needs no file here.
    if kind not in _FILES or data.sha256:
        return None
    path = folder / expanded(getattr(data, kind))
    if not path.is_file():
        raise invalid(Violation(f"data.{kind}", f"there is no file {path}"))
    return path
