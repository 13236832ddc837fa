"""Files of predictions: outputs, classes and probabilities."""

import csv
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from thalweg.client.files import write_whole
from thalweg.client.prediction import Prediction
from thalweg.contract.errors import Violation, invalid

_OUTPUTS = (".npy", ".npz", ".csv")


def check_name(path: Path) -> None:
    """Raises ThalwegError if the name of a file for outputs ends with an unknown suffix."""
    if path.suffix.lower() not in _OUTPUTS:
        raise invalid(Violation("--output", f"{path.name}: the name must end in one of {', '.join(_OUTPUTS)}"))


def arrays(prediction: Prediction) -> dict[str, NDArray[Any]]:
    """The arrays of a prediction, by their names in archives. Outputs that have names have these, but for that of the files."""
    if prediction.named:
        taken = {"files": np.array(prediction.files)} if prediction.files else {}
        return {f"output_{name}" if name in taken else name: values for name, values in prediction.named.items()} | taken
    named: dict[str, NDArray[Any] | None] = {
        "outputs": prediction.outputs,
        "classes": prediction.classes,
        "probabilities": prediction.probabilities,
    }
    named["labels"] = prediction.labels
    named["files"] = np.array(prediction.files) if prediction.files else None
    return {name: values for name, values in named.items() if values is not None}


def as_json(prediction: Prediction) -> dict[str, Any]:
    """A prediction as it is in JSON. Outputs that have names are an object."""
    if not prediction.named:
        return {name: values.tolist() for name, values in arrays(prediction).items()}
    outputs = {name: values.tolist() for name, values in prediction.named.items()}
    return {"outputs": outputs} | ({"files": list(prediction.files)} if prediction.files else {})


def write_outputs(path: Path, prediction: Prediction) -> None:
    """Writes outputs, and classes and probabilities if there are any and the file can hold them. Raises ThalwegError."""
    if prediction.named and path.suffix.lower() == ".npy":
        problem = f"{path.name}: the model returns several outputs, {', '.join(prediction.named)}; end the name in .npz or .csv"
        raise invalid(Violation("--output", problem))

    def write(aside: Path) -> None:
        if path.suffix.lower() == ".csv":
            _write_csv(aside, prediction)
            return
        # A file, not its path, to which NumPy would add a suffix.
        with aside.open("wb") as file:
            if path.suffix.lower() == ".npy":
                np.save(file, prediction.outputs)
            else:
                _write_archive(file, arrays(prediction))

    write_whole(path.absolute(), write)


def _write_archive(file: BinaryIO, named: Mapping[str, NDArray[Any]]) -> None:
    """Writes arrays as `numpy.savez` does, of which some names are arguments."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, values in named.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def _write_csv(path: Path, prediction: Prediction) -> None:
    """Writes a table: file, of images; class, or class_K if each output is one; probability_K, and outputK.

    K is a class's name if it has one. Outputs that have names have these, or NAME_K for each of several numbers for a sample.
    """
    names: list[str] = ["file"] if prediction.files else []
    columns: list[NDArray[Any]] = [np.array(prediction.files, object)[:, None]] if prediction.files else []
    for values, name, single in (
        (prediction.classes if prediction.labels is None else prediction.labels, "class_", "class"),
        (prediction.probabilities, "probability_", ""),
        *((values, f"{name}_", name) for name, values in prediction.named.items()),
        (None if prediction.named else prediction.outputs, "output", ""),
    ):
        if values is not None:
            width = math.prod(values.shape[1:])
            called = prediction.names if name == "probability_" and len(prediction.names) == width else range(width)
            names += [single] if single and values.ndim == 1 else [f"{name}{each}" for each in called]
            columns.append(values.reshape(len(values), width).astype(object))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *np.concatenate(columns, axis=1).tolist()])
