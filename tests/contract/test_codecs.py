"""Codecs: what is decoded from what was encoded, and how invalid bytes are refused."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from thalweg.contract import codecs, rules
from thalweg.contract.codecs import AnyCodec, SlabCodec
from thalweg.contract.layout import Slab
from thalweg.v1 import job_pb2

Bits = NDArray[np.uint32]
CHUNK = 32
KINDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {},
    "float16": {},
    "int8": {"block": 8},
    "top_k": {"fraction": 0.1},
}
LOSSY = [kind for kind in KINDS if kind != "float32"]
FEEDBACK = ["int8", "top_k"]
ANY = hnp.arrays(np.uint32, st.integers(1, 100), elements=st.integers(0, 2**32 - 1))
FINITE = hnp.arrays(np.float32, st.integers(1, 100), elements=st.floats(-(2.0**15), 2.0**15, width=32))


def spec_of(kind: str, dtype: str = "float32", **changes: Any) -> job_pb2.JobSpec:
    codec = {kind: {**KINDS[kind], **changes}}
    return json_format.ParseDict({"model": {"dtype": dtype}, "training": {"codec": codec}}, job_pb2.JobSpec())


def make(kind: str, chunk: int = CHUNK, **changes: Any) -> AnyCodec:
    return codecs.of_gradients(spec_of(kind, **changes), chunk)


def there_and_back(codec: AnyCodec, values: Slab) -> Slab:
    data = codec.encode(values)
    assert data.dtype == np.uint8
    assert data.size == codec.size(values.size)
    out = np.empty_like(values)
    codec.decode(data.tobytes(), out)
    assert codec.decoded(data.tobytes(), values.size).tobytes() == out.tobytes()
    return out


def test_the_registry_is_the_contracts() -> None:
    assert list(codecs.CODECS) == rules.alternatives(job_pb2.Codec, "kind") == list(KINDS)


def test_a_job_of_an_earlier_release_sends_gradients_as_they_are() -> None:
    spec = job_pb2.JobSpec(model=job_pb2.Model(dtype="float64"))
    assert codecs.exact(spec)
    values = np.array([0.1, 0.2])
    assert codecs.of_gradients(spec, CHUNK).encode(values).tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(st.integers(1, 100))
@settings(deadline=None)
def test_float32_changes_nothing_and_copies_nothing(dtype: str, size: int) -> None:
    codec = codecs.of_gradients(spec_of("float32", dtype), CHUNK)
    values = np.random.default_rng(size).normal(size=size).astype(dtype)
    data = codec.encode(values)
    assert np.shares_memory(data, values)
    assert codec.encode(values, np.empty(values.nbytes, np.uint8)).tobytes() == data.tobytes() == values.tobytes()
    assert np.shares_memory(codec.decoded(data, size), values)
    out = np.empty_like(values)
    codec.decode(data.tobytes(), out)
    assert out.tobytes() == values.tobytes()


def test_parameters_travel_as_gradients_or_as_they_are() -> None:
    kinds = {kind: type(codecs.of_parameters(spec_of(kind), CHUNK)) for kind in KINDS}
    own = {kind: codecs.CODECS[kind] for kind in ("bfloat16", "float16")}
    assert kinds == {**dict.fromkeys(KINDS, codecs.CODECS["float32"]), **own}


@pytest.mark.parametrize("kind", KINDS)
@given(bits=ANY, cut=st.integers(0, 4))
@settings(deadline=None)
def test_chunks_at_once_or_one_by_one_are_the_same_bytes(kind: str, bits: Bits, cut: int) -> None:
    codec, values = make(kind), bits.view(np.float32)
    middle = min(cut * CHUNK, values.size)
    parts = [part for part in (values[:middle], values[middle:]) if part.size]
    assert b"".join(codec.encode(part).tobytes() for part in parts) == make(kind).encode(values.copy()).tobytes()


@pytest.mark.parametrize("kind", LOSSY)
@given(bits=ANY)
@settings(deadline=None)
def test_bytes_do_not_depend_on_what_was_encoded_before(kind: str, bits: Bits) -> None:
    codec, values = make(kind), bits.view(np.float32)
    before = values.tobytes()
    first = codec.encode(values).tobytes()
    codec.encode(np.full(50, np.nan, np.float32))
    assert codec.encode(values).tobytes() == first == make(kind).encode(values).tobytes()
    assert values.tobytes() == before


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@given(bits=ANY)
@settings(deadline=None)
def test_what_was_rounded_once_stays(kind: str, bits: Bits) -> None:
    once = there_and_back(make(kind), bits.view(np.float32))
    np.testing.assert_array_equal(there_and_back(make(kind), once), once)


@given(ANY)
@settings(deadline=None)
def test_bfloat16_is_the_nearest(bits: Bits) -> None:
    values = bits.view(np.float32)
    found = there_and_back(make("bfloat16"), values)
    assert not (found.view(np.uint32) & 0xFFFF).any()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
    np.testing.assert_array_equal(np.signbit(found), np.signbit(values))
    # In double precision: what lies between a float32 and its neighbours is exact.
    below = (bits & 0xFFFF0000).view(np.float32).astype(np.float64)
    above = ((bits & 0xFFFF0000) + np.uint32(0x10000)).view(np.float32).astype(np.float64)
    for value, each, low, high, odd in zip(values.tolist(), found.tolist(), below, above, bits >> 16 & 1, strict=True):
        if np.isfinite([value, low, high]).all():
            even = high if odd else low
            nearest = low if abs(value - low) < abs(value - high) else high
            assert each == (even if abs(value - low) == abs(value - high) else nearest)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, 1.0),
        (1 + 2.0**-8, 1.0),
        (1 + 3 * 2.0**-8, 1 + 2.0**-6),
        (np.inf, np.inf),
        (-np.inf, -np.inf),
        (3.4e38, np.inf),
        (1e-45, 0),
    ],
)
def test_bfloat16_of_some_values(value: float, expected: float) -> None:
    assert there_and_back(make("bfloat16"), np.array([value], np.float32)).tolist() == [expected]


@given(ANY)
@settings(deadline=None)
def test_float16_is_numpys(bits: Bits) -> None:
    values = bits.view(np.float32)
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(there_and_back(make("float16"), values), expected)


def test_float16_is_numpys_everywhere_that_it_matters() -> None:
    """All halves, and the float32s halfway between them, a bit below and a bit above."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.sort(halves[np.isfinite(halves)])
    between = finite[:-1] + (finite[1:] - finite[:-1]) / 2
    up, down = (np.nextafter(between, np.float32(end)) for end in (np.inf, -np.inf))
    values = np.concatenate((halves, between, up, down, np.array([65519, 65520], np.float32)))
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16)
    codec = make("float16", chunk=1 << 16)
    np.testing.assert_array_equal(there_and_back(codec, values), expected.astype(np.float32))
    number = ~np.isnan(values)
    assert codec.encode(values).view(np.uint16)[number].tobytes() == expected[number].tobytes()


def test_float16_does_not_make_another_number_of_one_that_is_too_great() -> None:
    found = there_and_back(make("float16"), np.array([65504, 65520, -1e30, np.nan], np.float32))
    np.testing.assert_array_equal(found, np.array([65504, np.inf, -np.inf, np.nan], np.float32))


@given(FINITE)
@settings(deadline=None)
def test_int8_is_off_by_half_a_step_at_most(values: Slab) -> None:
    found = there_and_back(make("int8"), values)
    for start in range(0, values.size, CHUNK):
        for first in range(start, min(start + CHUNK, values.size), 8):
            where = slice(first, min(first + 8, start + CHUNK))
            step = float(np.abs(values[where]).max()) / 127
            assert np.abs(values[where] - found[where]).max() <= step / 2 * (1 + 1e-4) + 1e-36


def test_int8_tells_of_a_block_that_is_not_finite() -> None:
    values = np.ones(40, np.float32)
    values[3], values[17], values[39] = np.nan, -np.inf, np.inf
    found = there_and_back(make("int8"), values)
    assert np.isnan(found.reshape(5, 8)).all(axis=1).tolist() == [True, False, True, False, True]
    assert (found[8:16] == 1).all()


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-38, 1e-37, 3e38])
def test_int8_of_blocks_without_measure(value: float) -> None:
    found = there_and_back(make("int8"), np.full(20, value, np.float32))
    np.testing.assert_allclose(found, np.full(20, value, np.float32), atol=1.5e-36, rtol=1e-6)


@given(ANY, st.sampled_from([0.01, 0.1, 0.5]))
@settings(deadline=None)
def test_top_k_sends_the_greatest(bits: Bits, fraction: float) -> None:
    values = bits.view(np.float32)
    codec = make("top_k", fraction=fraction)
    found = there_and_back(codec, values)
    for start in range(0, values.size, CHUNK):
        given_, sent = values[start : start + CHUNK], found[start : start + CHUNK]
        kept = int(np.ceil(fraction * given_.size))
        # NaN before all numbers; of equals, the first.
        order = sorted(range(given_.size), key=lambda i: (not np.isnan(given_[i]), -abs(given_[i]), i))
        if np.isnan(given_).sum() < 2:
            expected = np.zeros_like(given_)
            expected[order[:kept]] = given_[order[:kept]]
            np.testing.assert_array_equal(sent, expected)


@pytest.mark.parametrize("kind", FEEDBACK)
@given(FINITE)
@settings(max_examples=20, deadline=None)
def test_what_is_left_out_comes_later(kind: str, gradient: Slab) -> None:
    """With error feedback, what was sent of a gradient that comes again and again has its mean in the end."""
    codec, left = make(kind), np.zeros_like(gradient)
    sent = np.zeros(gradient.size)
    steps = 200
    for _ in range(steps):
        values = gradient + left
        decoded = there_and_back(codec, values)
        left = values - decoded
        sent += decoded
    # What is left stays bounded, by some of the largest gradients that one can be kept waiting for.
    assert np.abs(sent / steps - gradient).max() <= 0.2 * np.abs(gradient).max() + 1e-30


@pytest.mark.parametrize("kind", KINDS)
@given(elements=st.integers(1, 100), data=st.binary(max_size=500))
@settings(deadline=None)
def test_bytes_of_another_number_are_refused(kind: str, elements: int, data: bytes) -> None:
    codec = make(kind)
    if len(data) != codec.size(elements):
        with pytest.raises(ValueError, match=f"has {len(data)} bytes, not {codec.size(elements)}"):
            codec.decoded(data, elements)


@pytest.mark.parametrize("kind", KINDS)
@given(elements=st.integers(1, 100), draw=st.data())
@settings(deadline=None)
def test_any_bytes_are_numbers_or_refused(kind: str, elements: int, draw: st.DataObject) -> None:
    codec = make(kind)
    size = codec.size(elements)
    data = draw.draw(st.binary(min_size=size, max_size=size))
    # The arrays beside it, to see whether anything is written out of bounds.
    memory = np.full(elements + 2, 7, np.float32)
    with suppress(ValueError):
        codec.decode(data, memory[1:-1])
    assert (memory[0], memory[-1]) == (7, 7)


@pytest.mark.parametrize("positions", [[0, 0, 1, 2], [1, 0, 2, 3], [0, 1, 2, 32], [0, 1, 2, 2**32 - 1], [3, 2, 1, 0]], ids=str)
def test_top_k_refuses_positions_that_it_does_not_make(positions: list[int]) -> None:
    data = np.array(positions, "<u4").tobytes() + bytes(16)
    with pytest.raises(ValueError, match="positions"):
        make("top_k").decoded(data, CHUNK)


@pytest.mark.parametrize("scale", [-1.0, np.inf, -np.inf])
def test_int8_refuses_scales_that_it_does_not_make(scale: float) -> None:
    data = np.array([1, scale], "<f4").tobytes() + bytes(16)
    with pytest.raises(ValueError, match="scale"):
        make("int8").decoded(data, 16)


def test_bytes_that_are_only_lent_will_do() -> None:
    for kind in KINDS:
        codec, values = make(kind), np.arange(70, dtype=np.float32)
        data = codec.encode(values)
        for lent in (data, memoryview(data.tobytes()), bytearray(data.tobytes())):
            assert codec.decoded(lent, 70).tobytes() == codec.decoded(data.tobytes(), 70).tobytes()


@pytest.mark.parametrize("kind", KINDS)
@given(bits=ANY, encoded=st.integers(0, 100), exact=st.none() | st.integers(0, 100), cut=st.integers(0, 4))
@settings(deadline=None)
def test_what_is_not_descended_travels_as_it_is_or_not_at_all(
    kind: str, bits: Bits, encoded: int, exact: int | None, cut: int
) -> None:
    """Each chunk is the codec's bytes of its parameters, then the other numbers; at once or in parts."""
    values, plain = bits.view(np.float32), make(kind)
    end = None if exact is None else encoded + exact
    codec = SlabCodec(make(kind), encoded, end)
    if end is not None:
        values[end:] = 0
    middle = min(cut * CHUNK, values.size)
    runs = [(start, values[start:stop]) for start, stop in ((0, middle), (middle, values.size)) if start < stop]
    data = b"".join(codec.encode(start, run).tobytes() for start, run in runs)
    assert len(data) == codec.size(0, values.size) == sum(codec.size(start, run.size) for start, run in runs)
    expected = b""
    for start in range(0, values.size, CHUNK):
        chunk, front = values[start : min(start + CHUNK, values.size if end is None else end)], max(0, encoded - start)
        expected += plain.encode(chunk[:front]).tobytes() + chunk[front:].tobytes()
    assert data == expected
    out = np.empty_like(values)
    codec.decode(0, data, out)
    assert codec.decoded(0, data, values.size).tobytes() == out.tobytes()
    assert out[encoded:].tobytes() == values[encoded:].tobytes()
    if encoded:
        assert out[:encoded].tobytes() == plain.decoded(plain.encode(values[:encoded]), min(encoded, values.size)).tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("encoded", "sent"), [(0, None), (10, None), (70, None), (10, 40), (0, 10), (32, 64)])
def test_bytes_of_a_mixed_chunk_are_counted(kind: str, encoded: int, sent: int | None) -> None:
    codec = SlabCodec(make(kind), encoded, sent)
    data = codec.encode(0, np.arange(70, dtype=np.float32)).tobytes()
    for wrong in (data[:-1], data + b"x", b""):
        with pytest.raises(ValueError, match=f"has {len(wrong)} bytes, not {len(data)}"):
            codec.decoded(0, wrong, 70)


def test_what_travels_as_it_is_is_not_copied() -> None:
    values = np.arange(70, dtype=np.float32)
    for codec in (SlabCodec(make("float32"), 30), SlabCodec(make("float32"), 30, 70), SlabCodec(make("int8"), 0)):
        data = codec.encode(0, values)
        assert np.shares_memory(data, values)
        assert np.shares_memory(codec.decoded(0, data, 70), values)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_chunks_of_constants_have_no_bytes(dtype: str) -> None:
    codec = SlabCodec(codecs.of_gradients(spec_of("float32", dtype), CHUNK), 40, 50)
    zero: Slab = np.zeros(CHUNK, dtype)
    assert codec.size(64, CHUNK) == codec.encode(64, zero).size == 0
    found = codec.decoded(64, memoryview(b""), CHUNK)
    assert (found.dtype, found.tobytes()) == (zero.dtype, zero.tobytes())
    with pytest.raises(ValueError, match="has 4 bytes, not 0"):
        codec.decoded(64, bytes(4), CHUNK)
