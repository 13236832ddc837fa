"""What a loss makes of outputs: the class of each sample, and how probable it is."""

import numpy as np
import pytest
from numpy.typing import NDArray

from thalweg.learning.sequential.losses import LOSSES, Loss


def make(name: str, width: int, *, one_hot: bool = False) -> Loss:
    loss = LOSSES[name]((width,), one_hot, np.dtype(np.float64))
    loss.make_room(3)
    return loss


LOGITS = np.array([[0.0, np.log(3)], [800.0, 0.0], [-1.0, -1.0]])
SHARES = np.array([[0.5], [0.25], [0.75]])
SEVERAL = np.array([[0.5, 0.1], [0.4, 0.9], [0.2, 0.3]])

DECIDED = [
    ("softmax_cross_entropy", 2, False, LOGITS, [1, 0, 0], [[0.25, 0.75], [1, 0], [0.5, 0.5]]),
    ("binary_cross_entropy", 1, False, SHARES, [[1], [0], [1]], [[0.5, 0.5], [0.75, 0.25], [0.25, 0.75]]),
    ("binary_cross_entropy", 2, False, SEVERAL, [[1, 0], [0, 1], [0, 0]], SEVERAL),
    ("binary_cross_entropy", 2, True, SEVERAL, [0, 1, 1], SEVERAL),
    ("mean_squared_error", 2, True, LOGITS, [1, 0, 0], None),
]


@pytest.mark.parametrize(("name", "width", "one_hot", "outputs", "classes", "probabilities"), DECIDED)
def test_decisions(
    name: str,
    width: int,
    one_hot: bool,
    outputs: NDArray[np.float64],
    classes: list[int],
    probabilities: NDArray[np.float64] | None,
) -> None:
    loss = make(name, width, one_hot=one_hot)
    decided = loss.decide(outputs)
    assert decided.astype(int).tolist() == classes
    found = loss.probabilities(outputs)
    if probabilities is None:
        assert found is None
    else:
        assert found is not None
        np.testing.assert_allclose(found, probabilities, rtol=1e-15)
    # Training counts as right what predicting decides.
    targets = np.eye(width)[decided] if one_hot else decided
    assert loss.correct(outputs, targets) == len(outputs)
    others = np.roll(np.eye(width)[decided], 1, 1) if one_hot else 1 - decided.astype(int)
    assert loss.correct(outputs, others) == 0


def test_no_samples_have_no_probabilities() -> None:
    assert [make("softmax_cross_entropy", 2).probabilities(np.empty((0, 2))).shape] == [(0, 2)]  # type: ignore[union-attr]
