"""safetensors files as streams: the same bytes as the library's, and read as it reads them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load, save

from thalweg.contract import tensors
from thalweg.contract.layout import FIXED_DTYPES, MAX_FIXED_BYTES, Slab, fixed_of, layout_of
from thalweg.contract.segments import Segment
from thalweg.v1 import job_pb2

TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=5).filter(lambda name: name != "__metadata__"),
    st.sampled_from(["<f4", "<f8"]).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    ),
    max_size=4,
)


def written(named: dict[str, tensors.Tensor], metadata: dict[str, str]) -> bytes:
    return b"".join(tensors.pieces(named, metadata))


@given(TENSORS, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=1))
def test_the_bytes_are_the_librarys(named: dict[str, Slab], metadata: dict[str, str]) -> None:
    data = written(dict(named), metadata)
    assert data == save(named, metadata or None)
    found, told = tensors.read(memoryview(data))
    assert told == metadata
    assert found.keys() == named.keys()
    for name, tensor in named.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].tobytes() == tensor.tobytes()
        assert not found[name].flags.writeable


def test_integers_are_written_as_the_library_writes_them() -> None:
    named = {"a": np.ones(3), "b": np.array(7), "c": np.arange(4).reshape(2, 2), "d": np.ones(1, np.float32)}
    data = written({**named}, {"x": "y"})
    assert data == save(named, {"x": "y"})
    found, metadata = tensors.read(memoryview(data))
    assert (list(found), metadata) == (["a", "d"], {"x": "y"})


def test_all_integers_are_written_as_the_library_writes_them() -> None:
    named = {f"{position % 3}{name}": np.ones(position + 1, dtype) for position, (name, dtype) in enumerate(FIXED_DTYPES.items())}
    named |= {"float": np.ones(3), "single": np.ones(1, np.float32)}
    data = written({**named}, {})
    assert data == save(named)
    assert sorted(tensors.read(memoryview(data))[0]) == ["float", "single"]


def test_a_state_has_all_names() -> None:
    layout = layout_of(
        [Segment("a", (2,))], np.dtype(np.float32), [Segment("n", ())], {"b": "a", "m": "n"}, {"mask": np.array([True, False])}
    )
    found = tensors.state(layout, np.array([1, 2], np.float32), 5)
    assert {name: values.tolist() for name, values in found.items()} == {
        "a": [1, 2],
        "n": 5,
        "mask": [True, False],
        "b": [1, 2],
        "m": 5,
    }
    assert found["b"] is found["a"]
    layout.order.extend([4, 3, 2, 1, 0])
    assert list(tensors.state(layout, np.array([1, 2], np.float32), 5)) == ["m", "b", "mask", "n", "a"]
    layout.aliases.add(name="c", tensor="d")
    with pytest.raises(ValueError, match="c is another name of d, which does not exist"):
        tensors.state(layout, np.array([1, 2], np.float32), 5)


@pytest.mark.parametrize(
    "fixed",
    [
        job_pb2.Fixed(name="a", dtype="float32", shape=[1], data=b"1234"),
        job_pb2.Fixed(name="a", dtype="object", shape=[1], data=b"12345678"),
        job_pb2.Fixed(name="a", dtype="int32", shape=[2], data=b"1234"),
        job_pb2.Fixed(name="a", dtype="int8", shape=[1 << 60, 1 << 60], data=b"1234"),
        job_pb2.Fixed(name="a", dtype="bool", shape=[2], data=b"\1\2"),
        job_pb2.Fixed(name="a", dtype="int8", shape=[MAX_FIXED_BYTES + 1], data=bytes(MAX_FIXED_BYTES + 1)),
    ],
)
def test_fixed_tensors_that_make_no_sense_are_refused(fixed: job_pb2.Fixed) -> None:
    with pytest.raises(ValueError, match=r"fixed tensor|truth value"):
        fixed_of(job_pb2.Layout(fixed=[fixed]))


def test_rows_are_one_tensor() -> None:
    rows = [np.arange(3, dtype=np.float32), np.arange(3, 6, dtype=np.float32)]
    found = load(written({"a": rows, "b": np.ones(2)}, {}))
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["b"].tolist() == [1, 1]


def test_pieces_are_small() -> None:
    assert max(map(len, tensors.pieces({"a": np.ones(1_000_000, np.float32)}, {}))) == 1 << 20


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "entry",
    [
        [],
        GOOD | {"dtype": "F16"},
        GOOD | {"dtype": []},
        GOOD | {"shape": [3]},
        GOOD | {"shape": [-2]},
        GOOD | {"shape": ["2"]},
        GOOD | {"shape": 2},
        GOOD | {"data_offsets": [0, 7]},
        GOOD | {"data_offsets": [-8, 0]},
        GOOD | {"data_offsets": [8, 16]},
        {"dtype": "F32"},
    ],
)
def test_a_header_that_describes_nothing_is_refused(entry: object) -> None:
    header = json.dumps({"a": entry}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(8)
    with pytest.raises(ValueError, match=r"."):
        tensors.read(memoryview(data))
    with pytest.raises(ValueError, match=r"."):
        tensors.read(memoryview(data[:20]))
