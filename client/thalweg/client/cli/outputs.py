"""Files of outputs that a model gives."""

import csv
from pathlib import Path

import numpy as np

from thalweg.client.local_models import Prediction
from thalweg.client.weights import write_whole
from thalweg.contract.errors import Violation, invalid

_OUTPUTS = (".npy", ".npz", ".csv")


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
