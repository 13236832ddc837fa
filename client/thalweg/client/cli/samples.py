"""Files of samples to predict from, and of outputs."""

import csv
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.client.local_models import Prediction
from thalweg.client.weights import write_whole
from thalweg.contract.errors import Violation, invalid
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

_OUTPUTS = (".npy", ".npz", ".csv")
# What a damaged, encrypted or foreign file makes its reader raise.
_UNREADABLE = (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, csv.Error)


def read_samples(path: Path, data: job_pb2.Data, header: pb.ParametersHeader) -> NDArray[Any]:
    """The samples in a file. A target's column, as the training data has one, is left out. Raises ThalwegError."""
    try:
        if path.suffix.lower() == ".csv":
            return _read_csv(path, data, header)
        with path.open("rb") as file:
            loaded: Any = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                return np.asarray(loaded)
            if "x" not in loaded and len(loaded.files) != 1:
                raise _wrong(path, f"has no array x; it has {', '.join(loaded.files) or 'none'}")
            return np.asarray(loaded["x" if "x" in loaded else loaded.files[0]])
    except OSError as error:
        raise _wrong(path, f"cannot be read: {error.strerror or error}") from error
    except _UNREADABLE as error:
        raise _wrong(path, "is none of .npy, .npz and .csv with numbers in it") from error


def _read_csv(path: Path, data: job_pb2.Data, header: pb.ParametersHeader) -> NDArray[Any]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        names = [name.strip() for name in next(lines, [])]
        rows = []
        for cells in filter(None, lines):
            try:
                rows.append([float(cell) for cell in cells])
            except ValueError as error:
                raise _wrong(path, f"line {lines.line_num}: {error}") from error
            if len(cells) != len(names):
                raise _wrong(path, f"line {lines.line_num} has {len(cells)} cells, and there are {len(names)} columns")
    table = np.array(rows, np.float64).reshape(len(rows), len(names))
    if data.target in names:
        return np.delete(table, names.index(data.target), axis=1)
    # Without a name, the target is the last column.
    return table[:, :-1] if len(names) == _features(header) + 1 else table


def _features(header: pb.ParametersHeader) -> int:
    """How many features a sample of a table has: the inputs of the first dense layer."""
    weights = {int(tensor.name.split(".")[0]): tensor.shape[1] for tensor in header.layout.tensors if len(tensor.shape) == 2}
    return weights[min(weights)] if weights else -1


def check_output(path: Path) -> None:
    """Refuses a file for outputs that has none of the known endings. Raises ThalwegError."""
    if path.suffix.lower() not in _OUTPUTS:
        raise invalid(Violation("--output", f"{path.name}: outputs are written to {', '.join(_OUTPUTS)}"))


def write_outputs(path: Path, prediction: Prediction) -> None:
    """Writes outputs, and classes where there are any and the file can hold both. Raises ThalwegError."""
    outputs, classes = prediction

    def write(aside: Path) -> None:
        if path.suffix.lower() == ".csv":
            _write_csv(aside, prediction)
            return
        # A file, not its path, to which NumPy would add an ending of its own.
        with aside.open("wb") as file:
            if path.suffix.lower() == ".npy":
                np.save(file, outputs)
            else:
                np.savez(file, **{"outputs": outputs} if classes is None else {"outputs": outputs, "classes": classes})

    write_whole(path.absolute(), write)


def _write_csv(path: Path, prediction: Prediction) -> None:
    outputs = prediction.outputs.reshape(len(prediction.outputs), -1)
    names = [f"output{index}" for index in range(outputs.shape[1])]
    columns = outputs.astype(object)
    if prediction.classes is not None and prediction.classes.ndim == 1:
        names.insert(0, "class")
        columns = np.column_stack([prediction.classes.astype(object), columns])
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *columns.tolist()])


def _wrong(path: Path, problem: str) -> Exception:
    return invalid(Violation("INPUT", f"{path} {problem}"))
