"""Samples as code of the job's author: a map-style data set, as those of PyTorch and Hugging Face."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from thalweg.learning import entry_points
from thalweg.learning.batch import INPUT, TARGET, Field
from thalweg.learning.data.errors import DataError, listed
from thalweg.learning.data.memory import is_held
from thalweg.learning.data.rows import Indices, Late, Rows, positions
from thalweg.learning.data.sources.columns import Source
from thalweg.v1 import job_pb2

_FIELD = "data.python"
# Samples that are read at once where all of them are.
_BLOCK = 256


@runtime_checkable
class MapStyle(Protocol):
    """A data set whose samples are found by their index."""

    def __len__(self) -> int:
        """The number of samples."""

    def __getitem__(self, index: int) -> object:
        """A sample: a pair (x, y), or a dictionary."""


def source(data: job_pb2.Data, _: object) -> Source:
    """The samples of a job's data set. Raises DataError, or MistakeError with the author's own lines."""
    entry = data.python
    made = entry_points.load(entry.entrypoint, f"{_FIELD}.entrypoint")
    with entry_points.running(_FIELD):
        dataset = entry_points.call(made, entry, _FIELD)
    reader = _Reader(dataset, data.target or TARGET)
    fields: dict[str, Rows] = {name: _Column(reader, name) for name in reader.schema}
    if is_held(reader.sample_bytes * len(reader)):
        fields = dict(reader.all())
    y = fields.pop(TARGET)
    if fields.keys() == {INPUT}:
        return Source(fields[INPUT], y)
    return Source(next(iter(fields.values())), y, inputs=fields)


class _Reader:
    """Reads samples of a data set, and holds each against the first one."""

    def __init__(self, dataset: object, target: str) -> None:
        if not isinstance(dataset, MapStyle):
            missing = [name for name in ("__len__", "__getitem__") if not hasattr(dataset, name)]
            kind = type(dataset).__name__
            raise DataError(f"{_FIELD}: the data set, of type {kind}, has no {' and no '.join(missing)}; it must be map-style")
        self._dataset = dataset
        self._target = target
        self._last: tuple[bytes, dict[str, NDArray[Any]]] | None = None
        with entry_points.running(_FIELD):
            self._length = len(dataset)
        if not self._length:
            raise DataError(f"{_FIELD}: has no samples")
        first = self._fields_of(0, self._read([0])[0])
        self.schema = {name: Field(value.dtype, value.shape) for name, value in first.items()}
        self.sample_bytes = sum(value.nbytes for value in first.values())

    def __len__(self) -> int:
        """The number of samples."""
        return self._length

    def __call__(self, indices: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """All fields of some samples. Of the samples that were read last, those are kept: fields are asked for one by one."""
        key = indices.tobytes()
        if self._last is None or self._last[0] != key:
            fields = {name: np.empty((len(indices), *field.shape), field.dtype) for name, field in self.schema.items()}
            self._fill(indices, fields)
            self._last = key, fields
        return self._last[1]

    def all(self) -> Mapping[str, NDArray[Any]]:
        """All fields of all samples, each sample read once."""
        fields = {name: np.empty((self._length, *field.shape), field.dtype) for name, field in self.schema.items()}
        for start in range(0, self._length, _BLOCK):
            indices = np.arange(start, min(start + _BLOCK, self._length))
            self._fill(indices, {name: values[start : start + len(indices)] for name, values in fields.items()})
        return fields

    def _fill(self, indices: NDArray[np.intp], fields: Mapping[str, NDArray[Any]]) -> None:
        numbers = indices.tolist()
        for row, (index, sample) in enumerate(zip(numbers, self._read(numbers), strict=True)):
            found = self._fields_of(index, sample)
            if found.keys() != self.schema.keys():
                raise DataError(
                    f"{_FIELD}: sample {index} has {listed(list(found))}, but sample 0 has {listed(list(self.schema))}"
                )
            for name, value in found.items():
                field = self.schema[name]
                if value.shape != field.shape or not np.can_cast(value.dtype, field.dtype, "same_kind"):
                    this, that = f"{value.dtype} of shape {value.shape}", f"{field.dtype} of shape {field.shape}"
                    raise DataError(f"{_FIELD}: {name} of sample {index} is {this}, but that of sample 0 is {that}")
                if value.dtype.kind == "f" and not np.isfinite(value).all():
                    raise DataError(f"{_FIELD}: {name} of sample {index} holds NaN or infinite values; remove or replace them")
                fields[name][row] = value

    def _read(self, indices: list[int]) -> Sequence[object]:
        """Samples as the data set gives them."""
        with entry_points.running(_FIELD):
            many = getattr(self._dataset, "__getitems__", None)
            samples: object = many(indices) if many else [self._dataset[index] for index in indices]
            if isinstance(samples, Sequence) and len(samples) == len(indices):
                return samples
        raise DataError(f"{_FIELD}: __getitems__ must return a list of as many samples as it is asked for")

    def _fields_of(self, index: int, sample: object) -> dict[str, NDArray[Any]]:
        """The fields of a sample by name, the target's last."""
        match sample:
            case (Mapping() as inputs, target):
                fields = {str(name): value for name, value in inputs.items()}
            case (single, target):
                fields = {INPUT: single}
            case Mapping() if self._target in sample:
                fields = {str(name): value for name, value in sample.items() if name != self._target}
                target = sample[self._target]
            case Mapping():
                keys = listed([str(name) for name in sample])
                raise DataError(
                    f"{_FIELD}: sample {index} has no {self._target}; it has {keys}; name its target with data.target"
                )
            case _:
                kind = type(sample).__name__
                raise DataError(f"{_FIELD}: sample {index} is of type {kind}; it must be a pair (x, y) or a dictionary")
        if TARGET in fields or not fields:
            raise DataError(
                f"{_FIELD}: the inputs of sample {index} are {listed(list(fields)) or 'none'}; one called y is the target"
            )
        return {name: _array(index, name, value) for name, value in (fields | {TARGET: target}).items()}


class _Column(Late):
    """One field of all samples, read when it is taken."""

    def __init__(self, reader: _Reader, name: str) -> None:
        self._reader = reader
        self._name = name
        self.dtype = reader.schema[name].dtype
        self.shape = (len(reader), *reader.schema[name].shape)

    def __len__(self) -> int:
        """The number of samples."""
        return self.shape[0]

    def __getitem__(self, indices: Indices) -> NDArray[Any]:
        """The field of the samples at indices."""
        chosen = positions(indices, len(self))
        return self._reader(np.asarray(chosen))[self._name]


def _array(index: int, name: str, value: object) -> NDArray[Any]:
    with entry_points.running(_FIELD):
        array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        kind = type(value).__name__ if array.dtype.kind == "O" else str(array.dtype)
        raise DataError(f"{_FIELD}: {name} of sample {index} is of type {kind}; it must be real numbers")
    return array
