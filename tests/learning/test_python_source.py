"""Data sets that are code: map-style, as PyTorch's and Hugging Face's."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from tests.learning.batches import inputs, targets
from tests.learning.modules import importable
from thalweg.learning import data
from thalweg.learning.data import memory
from thalweg.learning.errors import MistakeError
from thalweg.v1 import job_pb2

NAME = "data_of_test_python_source"


class Pairs:
    """Token ids, and the ids that follow."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return np.arange(index, index + 3), np.arange(index + 1, index + 4)


class Batched(Pairs):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


class Named(Pairs):
    def __getitem__(self, index: int) -> Any:
        return {"ids": np.arange(index, index + 3), "mask": np.ones(3, np.float64), "y": index % 2}


class NestedPairs(Named):
    def __getitem__(self, index: int) -> Any:
        named = super().__getitem__(index)
        return {"ids": named["ids"], "mask": named["mask"]}, named["y"]


@pytest.fixture
def load() -> Iterator[Callable[..., data.Dataset]]:
    """What loads a job's data from a data set that `make` makes."""
    with importable(NAME) as module:

        def load(make: Callable[..., Any], **more: Any) -> data.Dataset:
            vars(module)["make"] = make
            source = {"python": {"entrypoint": f"{NAME}:make", "arguments": more.pop("arguments", "{}")}}
            model = {"torch": {"entrypoint": "a:b"}, "loss": "softmax_cross_entropy", "dtype": "float32"}
            spec = json_format.ParseDict({"model": model, "data": source | more, "seed": 1}, job_pb2.JobSpec())
            return data.load(spec, Path)

        yield load


@pytest.mark.parametrize("kind", [Pairs, Batched])
def test_samples_are_read_once_and_integers_stay(load: Callable[..., data.Dataset], kind: type[Pairs]) -> None:
    made = kind()
    found = load(lambda: made)
    assert sorted(made.read) == [0, *range(10)]
    np.testing.assert_array_equal(inputs(found.train), [np.arange(i, i + 3) for i in range(10)])
    np.testing.assert_array_equal(targets(found.train), [np.arange(i + 1, i + 4) for i in range(10)])
    assert inputs(found.train).dtype == targets(found.train).dtype == np.int64


@pytest.mark.parametrize("kind", [Named, NestedPairs])
def test_several_inputs_by_name(load: Callable[..., data.Dataset], kind: type[Pairs]) -> None:
    found = load(kind, validation_fraction=0.2)
    fields = found.train.schema
    assert {name: (field.dtype.name, field.shape) for name, field in fields.items()} == {
        "ids": ("int64", (3,)),
        "mask": ("float32", (3,)),
        "y": ("int64", ()),
    }
    assert (len(found.train), len(found.validation)) == (8, 2)


def test_a_large_data_set_is_read_when_samples_are_taken(
    load: Callable[..., data.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(Pairs)
    monkeypatch.setattr(memory, "MAX_HELD", 0)
    made = Pairs()
    found = load(lambda: made)
    assert made.read == [0]
    taken = found.train.take(np.array([7, 2]))
    assert made.read == [0, 7, 2]
    for name, values in whole.train.take(np.array([7, 2])).items():
        np.testing.assert_array_equal(taken[name], values)


def test_arguments_reach_the_callable(load: Callable[..., data.Dataset]) -> None:
    def make(samples: int) -> list[Any]:
        return [(np.zeros(2), 0)] * samples

    assert len(load(make, arguments='{"samples": 5}').train) == 5


def test_the_target_may_have_another_key(load: Callable[..., data.Dataset]) -> None:
    found = load(lambda: [{"ids": [1, 2], "label": index} for index in range(3)], target="label")
    np.testing.assert_array_equal(targets(found.train), [0, 1, 2])


def nothing() -> list[Any]:
    return []


def growing() -> list[Any]:
    return [(np.zeros(2), 0), (np.zeros(3), 0)]


def unknown() -> list[Any]:
    return [(np.zeros(2), 0), (np.full(2, np.nan), 0)]


def failing() -> Any:
    class Failing(Pairs):
        def __getitem__(self, index: int) -> Any:
            raise KeyError("label")

    return Failing()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (nothing, "data.python: has no samples"),
        (lambda: iter([]), "has no __len__ and no __getitem__; it must be map-style"),
        (lambda: [3], "sample 0 is of type int; it must be a pair"),
        (lambda: [("text", 0)], "x of sample 0 is of type <U4; it must be real numbers"),
        (lambda: [{"ids": [1]}], "sample 0 has no y; it has 'ids'; name its target with data.target"),
        (growing, "x of sample 1 is float64 of shape (3,), but that of sample 0 is float64 of shape (2,)"),
        (unknown, "x of sample 1 holds NaN"),
        (failing, "KeyError: 'label' (at "),
    ],
)
def test_mistakes(load: Callable[..., data.Dataset], make: Any, words: str) -> None:
    with pytest.raises(MistakeError, match=r"^data\.python") as caught:
        load(make)
    assert words in str(caught.value)


def test_several_inputs_are_not_standardized(load: Callable[..., data.Dataset]) -> None:
    with pytest.raises(MistakeError, match=r"^data\.standardize: the samples have several inputs, 'ids', 'mask'"):
        load(Named, standardize=True)
