"""Files of samples to predict from: tables, arrays and images."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thalweg.client.files import check_input, copied, is_stream, reading
from thalweg.client.folders import expanded
from thalweg.client.parts import UNHASHED, numbered, parts_of
from thalweg.contract.addresses import is_url
from thalweg.contract.errors import ThalwegError, Violation, invalid
from thalweg.contract.rules import HELD_OUT, rules_of
from thalweg.learning import data
from thalweg.learning.data.sources import decoded_images
from thalweg.learning.data.sources.files import SourceFile
from thalweg.learning.data.sources.npz import is_numpys
from thalweg.learning.data.tables import Table
from thalweg.learning.errors import NodeError
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

# How names of image files end.
ENDINGS = tuple(rules_of(job_pb2.Data.DESCRIPTOR.fields_by_name["images"]).folder)


class Images(NamedTuple):
    """Images, uint8 of shape (images, channels, height, width), and the names of their files."""

    x: NDArray[np.uint8]
    files: tuple[str, ...]


def paths_of(x: object) -> list[Path] | None:
    """The paths that samples are given by: one, or a list of them; None if they are something else."""
    if isinstance(x, str | os.PathLike):
        return [expanded(x)]
    if isinstance(x, Sequence) and x and all(isinstance(each, str | os.PathLike) for each in x):
        return [expanded(each) for each in x]
    return None


def learns_from_images(spec: job_pb2.JobSpec) -> bool:
    """Whether a job's data is images, whose files can be predicted from."""
    return spec.data.WhichOneof("source") == "images"


def read_images(paths: Sequence[Path], spec: job_pb2.JobSpec, header: pb.ParametersHeader, field: str) -> Images:
    """The images in files, and in the files below folders, for a job.

    Raises ThalwegError, which names the field, if one cannot be read, is not as those that the job has learned from, or if the
    job has not learned from images.
    """
    try:
        return _read_images(paths, spec, header, field)
    except (data.DataError, NodeError) as error:
        raise told(error) from None


def _read_images(paths: Sequence[Path], spec: job_pb2.JobSpec, header: pb.ParametersHeader, field: str) -> Images:
    """The images in files, and in the files below folders. Raises as `read_images` does, and DataError, NodeError."""
    if not learns_from_images(spec):
        learned = f"the job has learned from data.{spec.data.WhichOneof('source')}"
        raise invalid(Violation(field, f"{paths[0]}: paths of images are for jobs that have learned from images, and {learned}"))
    files: list[SourceFile] = []
    for path in paths:
        if path.is_dir():
            files += [SourceFile(str(path / name), part) for name, part in parts_of(path, ENDINGS, field).items()]
        else:
            check_input(path, field)
            files.append(SourceFile(str(path), path))
    with reading(paths[0], field):
        return Images(decoded_images(files, header.preprocessing.shape, field), tuple(file.name for file in files))


class Input(NamedTuple):
    """Samples in files, as they stand there: an array, or a table; a notice for users; and the files that are images."""

    x: NDArray[Any] | Table
    notice: str = ""
    files: tuple[str, ...] = ()


# The sources of tables, files of which can lie in folders and at URLs.
_TABLES = ("csv", "json_lines", "parquet", "arrow")


def place_of(given: str | os.PathLike[str]) -> Path | str:
    """A path, or a URL as it is."""
    text = os.fspath(given)
    return text if is_url(text) else expanded(given)


def _read_place(place: Path | str, spec: job_pb2.JobSpec, header: pb.ParametersHeader, names: bool | None) -> Table:
    """The rows of the files below a folder, or of what is at a URL. Raises ThalwegError as `read_samples` does."""
    source = str(spec.data.WhichOneof("source"))
    if source not in _TABLES or not (header.preprocessing.table or header.preprocessing.columns):
        learned = f"the job has learned from data.{source}"
        raise invalid(Violation("INPUT", f"{place}: folders and URLs are for jobs that have learned from tables, and {learned}"))
    given, files = job_pb2.Data(), dict[str, Path]()
    given.CopyFrom(spec.data)
    for name in (*HELD_OUT, "sha256"):
        given.ClearField(name)
    setattr(given, source, str(place))
    with TemporaryDirectory(prefix="thalweg-") as folder:
        if isinstance(place, Path):
            endings = list(rules_of(job_pb2.Data.DESCRIPTOR.fields_by_name[source]).folder)
            files = numbered(parts_of(place, endings, "INPUT"), Path(folder))
            given.sha256 = UNHASHED
        try:
            with reading(Path(str(place)), "INPUT"):
                return data.read_rows_at(given, files.__getitem__, header.preprocessing, names)
        except (data.DataError, NodeError) as error:
            raise told(type(error)(str(error).replace(f"data.{source}: ", "INPUT: ", 1))) from None


def read_input(
    paths: Sequence[Path | str], spec: job_pb2.JobSpec, header: pb.ParametersHeader, names: bool | None = None
) -> Input:
    """The samples in files: in one, as `read_samples` gives them, of a table also in a folder or at a URL; or in image files and
    folders of them.

    Raises ThalwegError if they cannot be read, or are not as those that the job has learned from.
    """
    if urls := [each for each in paths if isinstance(each, str)] if learns_from_images(spec) else []:
        raise invalid(Violation("INPUT", f"{urls[0]} is a URL; images are read from files and folders: download them"))
    path, *others = paths
    if not learns_from_images(spec):
        if others:
            problem = "is given several times; several are possible only where the job has learned from images"
            raise invalid(Violation("INPUT", problem))
        if isinstance(path, str) or path.is_dir():
            return Input(_read_place(path, spec, header, names))
        if path.suffix.lower() not in ENDINGS:
            return Input(*read_samples(path, spec, header, names))
    files = [each for each in paths if isinstance(each, Path)]
    if learns_from_images(spec) and len(files) == 1 and not files[0].is_dir():
        if is_stream(files[0]):
            with copied(files[0], "INPUT") as copy:
                return read_input([copy], spec, header, names)
        check_input(files[0], "INPUT")
        if is_numpys(files[0]):
            return Input(*read_samples(files[0], spec, header, names))
    found = read_images(files, spec, header, "INPUT")
    return Input(found.x, files=found.files)


def read_samples(
    path: Path, spec: job_pb2.JobSpec, header: pb.ParametersHeader, names: bool | None = None
) -> tuple[NDArray[Any] | Table, str]:
    """The samples in a .csv, .npy or .npz file as they stand there, and a notice for users.

    They are an array in the order of the job's features, or a table if the job prepares columns in different ways. `names` says
    whether a table has a line of column names, if that differs from the job's `data.header`. Columns are found by the names that
    they had when the job was trained; where these are not known, columns are taken in their order, which the notice says. The
    format of a stream (`files.is_stream`) follows from its content. Raises ThalwegError if the file cannot be read, or its
    columns are others, or a package is missing.
    """
    if is_stream(path):
        with copied(path, "INPUT") as copy:
            return read_samples(copy, spec, header, names)
    check_input(path, "INPUT")
    try:
        with reading(path, "INPUT"):
            if (rows := data.read_rows(path, spec.data, header.preprocessing, names)) is not None:
                return rows, ""
            found = data.read_samples(path, spec.data, header.preprocessing, _features(header), names)
    except (data.DataError, NodeError) as error:
        raise told(error) from None
    return found.x, found.notice


def _features(header: pb.ParametersHeader) -> int:
    """How many features a sample of a table has, -1 if that is unknown."""
    if header.preprocessing.shape:
        return header.preprocessing.shape[0] if len(header.preprocessing.shape) == 1 else -1
    # A job of release 0.1.0 does not say: it is the number of inputs of the first dense layer.
    weights = {int(tensor.name.split(".")[0]): tensor.shape[1] for tensor in header.layout.tensors if len(tensor.shape) == 2}
    return weights[min(weights)] if weights else -1


def told(error: Exception) -> ThalwegError:
    """The error of a model or of data, whose message begins with the path of a field."""
    path, _, problem = str(error).partition(": ")
    return invalid(Violation(path, problem))
