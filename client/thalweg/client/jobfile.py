"""Job specifications from a packaged job's name, a TOML file, or a dictionary.

A field of a job is defined once, in `job.proto`; this module uses protobuf's JSON mapping. The server fills in defaults and
checks bounds.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
from google.protobuf import json_format

from thalweg.client.errors import JobFileError
from thalweg.client.files import check_input, check_not_pipe, reading
from thalweg.client.folders import AnyPath, expanded
from thalweg.client.mapping import SpecReader, values_of
from thalweg.client.packing import check_code
from thalweg.client.parts import Parts, parts_of
from thalweg.client.settings import Setting, apply_setting, read_settings
from thalweg.client.weights import check_weights
from thalweg.contract.addresses import urls_of
from thalweg.contract.encoding import UTF8, why_not_utf8
from thalweg.contract.errors import Violation, invalid
from thalweg.contract.manifests import empty_classes
from thalweg.contract.rules import HELD_OUT, alternatives, files, rules_of
from thalweg.contract.text import closest
from thalweg.v1 import job_pb2

Settings = Mapping[str, Any] | Iterable[str]
JobSource = AnyPath | Mapping[str, Any] | job_pb2.JobSpec

# Messages of a specification whose `source` may be a file, by their paths; the alternatives that are files; all their paths.
_Uploaded = job_pb2.Data | job_pb2.HeldOut | job_pb2.Initial | job_pb2.Code
_OfData = job_pb2.Data | job_pb2.HeldOut
_MESSAGES: dict[str, type[_Uploaded]] = {
    "data": job_pb2.Data,
    "data.validation": job_pb2.HeldOut,
    "data.test": job_pb2.HeldOut,
    "model.initial": job_pb2.Initial,
    "code": job_pb2.Code,
}
_FILES = {path: files(message, "source") for path, message in _MESSAGES.items()}
_SOURCES = {path: [f"{path}.{name}" for name in alternatives(message, "source")] for path, message in _MESSAGES.items()}


class Upload(NamedTuple):
    """Files that the server needs: the field that names them, and the message for the SHA-256 of the file, or of a manifest."""

    field: str
    message: job_pb2.Data | job_pb2.HeldOut | job_pb2.Initial
    given: Path | Parts

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [self.given] if isinstance(self.given, Path) else list(self.given.values())


@dataclass(frozen=True)
class JobFile:
    """A specification, and the files on this machine that it needs.

    `data` is the file of its data, or `parts` are its files, if there are several, by their paths in a manifest (`parts.py`);
    built-in data has neither. `initial` is the file of its initial parameters, if any; `code` the file or folder of its code, if
    any, which is uploaded as an archive (`packing.py`). `held_out` are the files of samples to validate and to test with, by the
    names of their fields in the data.
    """

    spec: job_pb2.JobSpec
    data: Path | None
    initial: Path | None
    code: Path | None = None
    parts: Parts = field(default_factory=dict)
    held_out: Mapping[str, Path | Parts] = field(default_factory=dict)

    def uploads(self) -> Iterator[Upload]:
        """The files that the server needs as they are."""
        if self.parts or self.data:
            yield Upload(f"data.{self.spec.data.WhichOneof('source')}", self.spec.data, self.parts or self.data or Path())
        for name, given in self.held_out.items():
            message = getattr(self.spec.data, name)
            yield Upload(f"data.{name}.{message.WhichOneof('source')}", message, given)
        if self.initial:
            yield Upload("model.initial.file", self.spec.model.initial, self.initial)


def packaged_jobs() -> list[str]:
    """The names of the packaged jobs."""
    folder = resources.files("thalweg.client") / "jobs"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def packaged_job(name: str) -> str:
    """The text of a packaged job's file."""
    return (resources.files("thalweg.client") / "jobs" / f"{name}.toml").read_text(encoding="utf-8")


def toml_of(spec: job_pb2.JobSpec) -> str:
    """A specification as the text of a job file. `load_job` reads it as the same specification."""
    return tomli_w.dumps(values_of(spec))


def with_data(job: JobFile, data: Path | Parts) -> JobFile:
    """The job, with an .npz or .parquet file, or .npy files `x` and `y`, as its data. Its specification has their names only."""
    spec = job_pb2.JobSpec()
    spec.CopyFrom(job.spec)
    spec.data.ClearField("sha256")
    if isinstance(data, Path):
        setattr(spec.data, _kind(data), data.name)
        return replace(job, spec=spec, data=data, parts={})
    spec.data.npy.CopyFrom(job_pb2.Npy(**{name: path.name for name, path in data.items()}))
    return replace(job, spec=spec, data=None, parts=data)


def load_job(job: JobSource, settings: Settings = (), data: Path | Parts | None = None) -> JobFile:
    """The specification of a job, with settings laid over it.

    `job` is the name of a packaged job, the path of a TOML file, a mapping of the same shape, or a specification.
    `settings` are texts `PATH=VALUE` or a mapping of paths to values. Relative paths of files are relative to the job file's
    folder, in settings and mappings to the current one. `data` is an .npz or .parquet file, or .npy files `x` and `y`, that
    replaces the job's data.
    Raises ThalwegError with every error that can be found without a server.
    """
    source, document, folder = _document(job)
    folders = dict.fromkeys(_FILES, folder)
    values = _walked(document, source)
    for setting in [*read_settings(settings), *([_setting_of(data)] if data else [])]:
        apply_setting(values, job_pb2.JobSpec.DESCRIPTOR, setting)
        # So that the next setting finds tables.
        values = _walked(values, "")
        for path, sources in _SOURCES.items():
            if setting.path in sources:
                # Another file: it is not the one that was uploaded before,
                _below(values, path).pop("sha256", None)
            if any(setting.path.startswith(f"{source}.") for source in sources):
                # One of several files.
                _below(values, path).pop("sha256", None)
                folders[setting.path] = Path()
            if setting.path in sources or f"{path}.".startswith(f"{setting.path}."):
                # and its path is not relative to the job file's folder.
                folders[path] = Path()
    spec = json_format.ParseDict(values, job_pb2.JobSpec())
    if spec.model.initial.job:
        # The server fills it in.
        spec.model.initial.ClearField("sha256")
    code = _file(spec.code, "code", folders)
    initial = _file(spec.model.initial, "model.initial", folders)
    if initial:
        check_weights(initial, "model.initial.file")
    endings = _endings(spec.data)
    data_file, parts = _data(spec.data, "data", endings, folders)
    own = {name: _data(getattr(spec.data, name), f"data.{name}", endings, folders) for name in HELD_OUT}
    held_out: dict[str, Path | Parts] = {name: file or several for name, (file, several) in own.items() if file or several}
    loaded = JobFile(spec, data_file, initial, code, parts, held_out)
    return with_data(loaded, data) if data else loaded


def _setting_of(data: Path | Parts) -> Setting:
    if isinstance(data, Path):
        return Setting(f"data.{_kind(data)}", str(data), None)
    return Setting("data.npy", {name: str(path) for name, path in data.items()}, None)


def _kind(data: Path) -> str:
    """The source that a file of data is for."""
    return data.suffix.removeprefix(".")


def _below(values: dict[str, Any], path: str) -> dict[str, Any]:
    """The values of a message by its path."""
    for name in path.split("."):
        values = values[name]
    return values


def _walked(document: Any, source: str) -> dict[str, Any]:
    walk = SpecReader()
    values = walk.message(job_pb2.JobSpec.DESCRIPTOR, document)
    if walk.violations:
        raise JobFileError(source, tuple(walk.violations))
    return values


def _document(job: JobSource) -> tuple[str, Any, Path]:
    """A job's values, their source, and the folder of relative paths."""
    if isinstance(job, job_pb2.JobSpec):
        return "", values_of(job), Path()
    if isinstance(job, Mapping):
        return "", job, Path()
    if isinstance(job, str) and job in packaged_jobs():
        return job, tomllib.loads(packaged_job(job)), Path()
    if not os.fspath(job):
        raise invalid(Violation("JOB", f"is empty; give a packaged job ({', '.join(packaged_jobs())}) or the path of a job file"))
    path = expanded(job)
    return str(job), _read_toml(path, str(job)), path.parent


def _read_toml(path: Path, name: str) -> dict[str, Any]:
    check_not_pipe(path, name, named_only=True)
    try:
        # The error is about the path, not about a field of the job.
        with reading(path, ""):
            try:
                text = path.read_text(encoding=UTF8)
            except FileNotFoundError:
                raise invalid(Violation(name, _not_found(name))) from None
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise invalid(Violation(name, why_not_utf8(path))) from error
    except ValueError as error:
        problem, _, where = str(error).partition(" (at ")
        place = re.match(r"line (\d+), column (\d+)", where)
        raise invalid(Violation(f"{name}, line {place[1]}, column {place[2]}" if place else name, problem)) from error


def _not_found(name: str) -> str:
    names = packaged_jobs()
    close = closest(name, names)
    hint = f"; did you mean {close}?" if close else ""
    return f"there is no such file, and no packaged job of this name{hint} (packaged jobs: {', '.join(names)})"


def _file(message: _Uploaded, path: str, folders: Mapping[str, Path], endings: Sequence[str] = ()) -> Path | None:
    """The file, or the folder of code or data, that a message names, if any. Raises ThalwegError if it cannot be read.

    `endings` are those of the files that are read from a folder, if data may be one.
    """
    kind = message.WhichOneof("source")
    # Uploaded data needs no file here, nor does what workers read at a URL.
    if kind not in _FILES[path] or message.sha256 or (isinstance(message, _OfData) and urls_of(message)):
        return None
    field, given = f"{path}.{kind}", getattr(message, kind)
    if not given:
        raise invalid(Violation(field, "is empty; give the path of a file"))
    file = folders[path] / expanded(given)
    if isinstance(message, job_pb2.Code):
        check_code(file, field)
        return file
    with reading(file, field):
        is_folder = bool(endings) and file.is_dir()
    if not is_folder:
        check_input(file, field)
    return file


def _data(
    message: job_pb2.Data | job_pb2.HeldOut, path: str, endings: Sequence[str], folders: Mapping[str, Path]
) -> tuple[Path | None, Parts]:
    """The file of data, or its files, if there are several. Raises ThalwegError if they cannot be read."""
    kind = message.WhichOneof("source")
    if kind == "npy" and not message.sha256 and not urls_of(message):
        parts = {}
        for name in ("x", "y"):
            field = f"{path}.npy.{name}"
            if not (given := getattr(message.npy, name)):
                raise invalid(Violation(field, "is empty; give the path of a file"))
            parts[name] = folders.get(field, folders[path]) / expanded(given)
            check_input(parts[name], field)
        return None, parts
    file = _file(message, path, folders, endings)
    if file is None or not file.is_dir():
        return file, {}
    found = parts_of(file, endings, f"{path}.{kind}")
    with reading(file, f"{path}.{kind}"):
        # Samples that are held out may lack a class.
        if kind == "images" and (wrong := empty_classes(file, found)):
            raise invalid(Violation(f"{path}.{kind}", wrong))
    return None, found


def _endings(data: job_pb2.Data) -> list[str]:
    """How the names of files end that are read from a folder. Empty if the source is not a folder."""
    source = data.WhichOneof("source")
    return list(rules_of(data.DESCRIPTOR.fields_by_name[source]).folder) if source else []
