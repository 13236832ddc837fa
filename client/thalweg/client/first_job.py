"""The data in a file that a user has, and a job to begin with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import tomli_w

from thalweg.client.errors import LocalError
from thalweg.client.files import check_folder, check_input, reading
from thalweg.client.folders import expanded
from thalweg.client.jobfile import Settings, load_job
from thalweg.client.mapping import values_of
from thalweg.client.parts import UNHASHED, numbered
from thalweg.contract.errors import ThalwegError
from thalweg.contract.rules import rules_of
from thalweg.learning.data import Temporary
from thalweg.learning.data.errors import DataError
from thalweg.learning.data.inspection import ArrayFound, ArraysFound, ColumnFound, TableFound, array, inspect
from thalweg.learning.data.preparation import MAX_FEATURES
from thalweg.learning.data.sources.npz import load_array
from thalweg.learning.errors import NodeError
from thalweg.v1 import job_pb2

_BINARY = ("parquet", "arrow")
_FOLDERS = (*_BINARY, "csv", "json_lines")
_IMAGES = "images"
_MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow"}
_JSON_LINES = (".jsonl", ".ndjson")
_HIDDEN = 32
_HELD_OUT = 0.2
# From this number of samples on, some are held out.
_MIN_HELD_OUT = 10
# Columns have this number of values, so that there is one among the samples to learn from.
_MIN_PRESENT = 5
# Stands for a missing text among those that are hashed.
_UNKNOWN = "unknown"


class Checked(NamedTuple):
    """What is in a file, and the text of a job file to begin with, which is empty if a model cannot learn from the file."""

    source: str
    found: TableFound | ArraysFound | ArrayFound
    job: dict[str, Any]

    @property
    def text(self) -> str:
        """The job file."""
        return tomli_w.dumps(self.job) if self.job else ""


def check(given: str, target: str | None, settings: Settings = ()) -> Checked:
    """What is in a file or folder, or at a URL. `target` names the column of targets, or the file of those in `given`, a .npy.

    `settings` are those of the job. Raises ThalwegError if the data cannot be read, or a setting is wrong.
    """
    with _failures():
        kind = _kind(given)
        if kind == "npy" and not target:
            with reading(expanded(given), "data.npy"):
                found = array("data.npy", load_array(expanded(given), "data.npy", given), expanded(given).name)
            return Checked(kind, found, {})
    data: dict[str, Any] = {kind: {"x": given, "y": target} if kind == "npy" else given}
    if target and kind != "npy":
        data["target"] = target
    loaded = load_job({"data": data}, settings)
    with _failures(), TemporaryDirectory(prefix="thalweg-check-") as folder, reading(Path(given), f"data.{kind}"):
        files: Mapping[str, Path] = numbered(loaded.data, Path(folder)) if loaded.data else {}
        if loaded.parts:
            files = numbered(loaded.parts, Path(folder))
        if files:
            loaded.spec.data.sha256 = UNHASHED
        seen = inspect(loaded.spec.data, Temporary(files.__getitem__))
    loaded.spec.data.ClearField("sha256")
    job = values_of(loaded.spec)
    return Checked(kind, seen, _of_table(job, seen) if isinstance(seen, TableFound) else _of_arrays(job, seen))


@contextmanager
def _failures() -> Iterator[None]:
    """What is wrong with the data is what the check finds, no wrong input."""
    try:
        yield
    except (DataError, NodeError, ThalwegError) as error:
        raise LocalError(str(error)) from error


def _kind(given: str) -> str:
    """The source of a job that reads a file or folder: by the end of its name, or else by its beginning. Raises ThalwegError."""
    path, name = expanded(given), given.lower()
    endings = {kind: tuple(rules_of(job_pb2.Data.DESCRIPTOR.fields_by_name[kind]).folder) for kind in (*_FOLDERS, _IMAGES)}
    is_url = "://" in given
    if not is_url and path.is_dir():
        check_folder(path, "FILE")
        for kind, known in endings.items():
            if any(each.name.lower().endswith(known) for each in path.rglob("*")):
                if kind == _IMAGES:
                    remedy = "a job names such a folder by data.images"
                    raise LocalError(f"{given}: holds images, and only tables are shown; {remedy}")
                return kind
        expected = ", ".join(ending for kind in _FOLDERS for ending in endings[kind])
        raise LocalError(f"{given}: there is no file below this folder whose name ends in one of {expected}")
    if not is_url:
        check_input(path, "FILE")
    for kind in ("npz", "npy"):
        if name.endswith(f".{kind}"):
            return kind
    for kind in _BINARY:
        if name.endswith(endings[kind]):
            return kind
    if not {*_JSON_LINES}.isdisjoint(Path(name).suffixes):
        return "json_lines"
    if not is_url:
        with reading(path, "FILE"), path.open("rb") as file:
            start = file.read(6)
        return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "csv")
    return "csv"


def _of_table(job: dict[str, Any], found: TableFound) -> dict[str, Any]:
    target, data = found.target, job["data"]
    if target.refused:
        return {}
    settings: dict[str, dict[str, Any]] = data.pop("columns", {})
    used = [column for column in found.columns if column.prepare]
    for column in found.columns:
        if _says_nothing(column, found.rows):
            data["ignore"] = sorted({*data.get("ignore", []), column.name})
            if "features" in data:
                data["features"] = [name for name in data["features"] if name != column.name]
        elif column.refused:
            filled = {"missing": _UNKNOWN} if column.missing else {}
            settings.setdefault(column.name, {}).update({"prepare": "hash", **filled})
    left = [column for column in used if column.name not in data.get("ignore", [])]
    if not left:
        return {}
    named = found.written is None or found.written.header
    if named and "targets" not in data:
        data.setdefault("target", target.name)
    if any(column.missing for column in left):
        data.setdefault("missing", "median")
    if any(column.type == "number" for column in left):
        data.setdefault("standardize", True)
    if target.missing and data.get("missing") != "drop":
        for name in data.get("targets", [target.name]):
            settings.setdefault(name, {}).setdefault("missing", "drop")
    if not target.classes and target.values == 1:
        settings.setdefault(target.name, {}).setdefault("prepare", "standardize")
    _hold_out(data, found.rows - target.missing, target.name if target.classes and named else "")
    if settings:
        data["columns"] = settings
    return _completed(job, [], len(target.classes), target.values)


def _says_nothing(column: ColumnFound, rows: int) -> bool:
    """Whether a column that is not a target is left out: it has hardly any values, or mostly different texts, or is no text."""
    if not column.prepare:
        return bool(column.refused)
    present = rows - (column.missing or 0)
    differs = column.type == "text" and column.distinct is not None and 2 * column.distinct > present >= _MIN_HELD_OUT
    return present < min(_MIN_PRESENT, rows) or differs or bool(column.refused and column.prepare != "one_hot")


def _of_arrays(job: dict[str, Any], found: ArraysFound) -> dict[str, Any]:
    shape, data = found.arrays[0].shape, job["data"]
    size = 1
    for axis in shape[1:]:
        size *= axis
    if len(shape) < 2 or not size or not shape[0]:
        return {}
    if size <= MAX_FEATURES:
        data.setdefault("standardize", True)
    _hold_out(data, shape[0], "y" if found.target.classes else "")
    first: list[dict[str, Any]] = [{"flatten": {}}] if len(shape) > 2 else []
    return _completed(job, first, len(found.target.classes), found.target.values)


def _hold_out(data: dict[str, Any], samples: int, stratify: str) -> None:
    if samples < _MIN_HELD_OUT or "validation" in data or "validation_fraction" in data:
        return
    if stratify:
        data["validation"] = {"fraction": _HELD_OUT, "stratify": stratify}
    else:
        data["validation_fraction"] = _HELD_OUT


def _completed(job: dict[str, Any], first: list[dict[str, Any]], classes: int, values: int) -> dict[str, Any]:
    """The job with a model and an optimizer, unless it has them."""
    layers = [*first, {"dense": {"units": _HIDDEN}}, {"relu": {}}, {"dense": {"units": classes or values}}]
    loss = "softmax_cross_entropy" if classes else "mean_squared_error"
    model = {"loss": loss} | job.get("model", {})
    if not {"layers", "torch", "jax", "python"} & model.keys():
        model["layers"] = layers
    rest = {name: value for name, value in job.items() if name not in ("data", "model", "optimizer")}
    optimizer = job.get("optimizer", {"adam": {"learning_rate": 0.01}})
    return {**rest, "data": job["data"], "model": model, "optimizer": optimizer}
