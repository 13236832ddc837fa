"""What all kinds of models have in common: one suite, which each of them passes."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.learning.kinds.cases import MODELS, require, samples, settled, spec_of
from thalweg.contract.layout import Slab, views_of
from thalweg.contract.segments import elements
from thalweg.contract.sums import Sums
from thalweg.learning import registry
from thalweg.learning.batch import Batch
from thalweg.learning.data import Arrays
from thalweg.learning.data.rows import Indices
from thalweg.learning.data.samples import Out
from thalweg.learning.numerical import NumericalDifferentiator
from thalweg.learning.objective import Objective
from thalweg.learning.randomness import Draw
from thalweg.learning.sequential.model import Sequential

# Makes an objective of the kind under test, for a seed and a dtype.
Make = Callable[..., Objective]


@pytest.fixture(params=MODELS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    kind: str = request.param
    require(kind)
    spec = spec_of(kind)

    def made(seed: int = 7, dtype: str = "float32") -> Objective:
        spec.seed = seed
        return registry.objective(spec, Arrays(samples(1, dtype)).schema, dtype)

    with settled(spec):
        yield made


def start(objective: Objective) -> Slab:
    """The initial parameters, which can only be read."""
    at = np.empty(objective.size, objective.dtype)
    objective.initialize(at)
    at.flags.writeable = False
    return at


def other(objective: Objective) -> Slab:
    """Other parameters."""
    at = start(objective) + np.random.default_rng(3).normal(0, 0.3, objective.size).astype(objective.dtype)
    at.flags.writeable = False
    return at


def gradient(objective: Objective, at: Slab, batch: Batch, draw: Draw = (2, 1), denominator: int = 20) -> tuple[bytes, Sums]:
    out = np.full(objective.size, np.nan, objective.dtype)
    sums = objective.gradient(at, batch, denominator, draw, out)
    return out.tobytes(), sums


def test_the_slab_is_what_the_segments_say(make: Make) -> None:
    objective = make()
    assert objective.size == elements(objective.segments) > 0
    assert len({segment.name for segment in objective.segments}) == len(objective.segments)
    assert objective.dtype == np.float32
    assert make(dtype="float64").dtype == np.float64
    assert objective.segments == make().segments


def test_initial_parameters_follow_from_the_seed(make: Make) -> None:
    objective = make()
    first = start(objective)
    assert np.isfinite(first).all()
    gradient(objective, first, samples(4))
    for again in (objective, make()):
        assert start(again).tobytes() == first.tobytes()
    assert start(make(seed=8)).tobytes() != first.tobytes()


def test_equal_calls_have_equal_bits_whatever_comes_between(make: Make) -> None:
    objective, fresh = make(), make()
    at, elsewhere, batch = start(objective), other(objective), samples(7)
    here, there = gradient(objective, at, batch), gradient(objective, elsewhere, batch)
    assert here[0] != there[0]
    for number in (1, 7, 12):
        gradient(objective, elsewhere, samples(number), (number, 0))
        objective.measure(at, samples(number))
        objective.predict(elsewhere, samples(number))
    for _ in range(2):
        assert gradient(objective, at, batch) == here
        assert gradient(objective, elsewhere, batch) == there
    assert gradient(fresh, at, batch) == here


def test_only_the_parameters_values_count(make: Make) -> None:
    """The same array with other values, and another one with the same values."""
    objective = make()
    first, second = start(objective), other(objective)
    expected = [gradient(objective, at, samples(5)) for at in (first, second)]
    changing = np.empty_like(first)
    for _ in range(2):
        for values, wanted in zip((first, second), expected, strict=True):
            changing[...] = values
            assert gradient(objective, changing, samples(5)) == wanted
            assert gradient(objective, values.copy(), samples(5)) == wanted


def test_random_numbers_follow_from_step_and_microbatch(make: Make) -> None:
    objective = make()
    at, batch = start(objective), samples(9)
    np.random.seed(1)
    found = {draw: gradient(objective, at, batch, draw) for draw in ((0, 0), (0, 1), (1, 0), (5, 3))}
    assert len(set(found.values())) == len(found)
    np.random.seed(2)
    for draw, wanted in reversed(found.items()):
        assert gradient(objective, at, batch, draw) == wanted
    # Without a draw the model does not train, and draws nothing or always the same.
    assert objective.measure(at, batch) == objective.measure(at, batch)
    assert objective.measure(at, batch) != objective.measure(at, batch, (0, 0))


def test_the_gradient_is_that_of_the_loss(make: Make) -> None:
    objective = make(dtype="float64")
    at, batch, draw = other(objective), samples(6, "float64"), (3, 2)
    found, expected = np.empty(objective.size), np.empty(objective.size)
    sums = objective.gradient(at, batch, 12, draw, found)
    differences = NumericalDifferentiator(objective, "numerical")
    point = differences.at(at, batch, draw)
    differences.differentiate(point, 12, slice(0, objective.size), expected)
    assert np.abs(found).max() > 0.01
    for segment, values in zip(objective.segments, views_of(objective.segments, found).values(), strict=True):
        wanted = views_of(objective.segments, expected)[segment.name]
        np.testing.assert_allclose(values, wanted, atol=1e-7, rtol=1e-6, err_msg=segment.name)
    assert point.sums.samples == sums.samples == 6
    assert point.sums.loss == pytest.approx(sums.loss, rel=1e-12)


def test_the_gradient_is_divided_by_the_denominator(make: Make) -> None:
    objective = make()
    at, batch = start(objective), samples(8)
    one, many = (np.frombuffer(gradient(objective, at, batch, denominator=n)[0], np.float32) for n in (8, 32))
    np.testing.assert_allclose(one, 4 * many, rtol=1e-5, atol=1e-7)


def test_sums_are_those_of_a_measurement(make: Make) -> None:
    objective = make()
    at, batch = start(objective), samples(6)
    _, sums = gradient(objective, at, batch, (4, 0))
    measured = objective.measure(at, batch, (4, 0))
    assert measured.samples == sums.samples == 6
    assert measured.loss == pytest.approx(sums.loss, rel=1e-6)
    assert len(sums.metrics) == len(measured.metrics) == len(objective.metrics)
    assert measured.metrics == pytest.approx(sums.metrics)


def test_without_samples_all_is_zero(make: Make) -> None:
    objective = make()
    at, none = start(objective), {name: values[:0] for name, values in samples(3).items()}
    out, reached = np.full(objective.size, np.nan, np.float32), list[int]()
    assert objective.gradient(at, none, 5, (0, 0), out, reached.append) == Sums()
    assert not out.any()
    assert reached[-1] == objective.size
    assert objective.measure(at, none) == objective.measure(at, none, (0, 0)) == Sums()


def test_progress_only_grows_and_is_true(make: Make) -> None:
    objective = make()
    at, batch = start(objective), samples(6)
    whole = gradient(objective, at, batch)[0]
    for _ in range(2):
        out, reached, seen = np.full(objective.size, np.nan, np.float32), [0], list[bytes]()

        def done(number: int, out: Slab = out, reached: list[int] = reached, seen: list[bytes] = seen) -> None:
            reached.append(number)
            seen.append(out[:number].tobytes())

        objective.gradient(at, batch, 20, (2, 1), out, done)
        assert reached == sorted(reached)
        assert reached[-1] == objective.size
        assert all(whole.startswith(part) for part in seen)
        assert out.tobytes() == whole


def test_parameters_and_samples_are_only_read(make: Make) -> None:
    objective = make()
    at, batch = start(objective).copy(), samples(5)
    before = at.tobytes(), {name: values.tobytes() for name, values in batch.items()}
    for values in batch.values():
        values.flags.writeable = False
    gradient(objective, at, batch)
    objective.measure(at, batch)
    objective.predict(at, batch)
    objective.check(Arrays(batch))
    assert (at.tobytes(), {name: values.tobytes() for name, values in batch.items()}) == before


def test_one_sample_is_a_batch(make: Make) -> None:
    objective = make()
    at, batch = start(objective), samples(1)
    found, sums = gradient(objective, at, batch)
    assert np.isfinite(np.frombuffer(found, np.float32)).all()
    assert np.frombuffer(found, np.float32).any()
    assert objective.measure(at, batch, (2, 1)).loss == pytest.approx(sums.loss, rel=1e-6)
    assert objective.measure(at, batch).samples == sums.samples == 1
    assert objective.predict(at, batch).values.shape == (1, 3)


def test_predictions_have_a_row_for_each_sample(make: Make) -> None:
    objective = make()
    at, batch = start(objective), samples(11)
    outputs = objective.predict(at, {"x": batch["x"]})
    assert outputs.values.shape == (11, 3)
    assert outputs.values.dtype == np.float32
    kept = outputs.values.copy()
    objective.predict(other(objective), samples(11))
    np.testing.assert_array_equal(outputs.values, kept)
    np.testing.assert_array_equal(objective.predict(at, batch).values, kept)


def test_samples_that_fit_are_accepted(make: Make) -> None:
    objective = make()
    objective.check(Arrays(samples(0)))
    objective.check(Arrays(samples(30)))
    objective.check(Arrays(samples(2)))


class Counted(Arrays):
    """Samples that say how many of them were taken."""

    taken = 0

    @property
    def in_memory(self) -> bool:
        return False

    def take(self, indices: Indices, out: Out | None = None) -> Batch:
        batch = super().take(indices, out)
        self.taken += len(batch["x"])
        return batch


def test_a_model_that_is_code_is_checked_with_a_few_samples(make: Make) -> None:
    """They may lie in a data set that is read sample by sample."""
    objective = make()
    counted = Counted(samples(1000))
    objective.check(counted)
    if isinstance(objective, Sequential):
        assert counted.taken == 1000
    else:
        assert 0 < counted.taken < 10
