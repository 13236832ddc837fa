"""A shard's copies are made piece by piece, and are those of the version at which they were asked for."""

import numpy as np
import pytest

from tests.server.specs import make_spec
from thalweg.contract import tree
from thalweg.server.arrays.parameters import PARAMETERS, Parameters
from thalweg.server.arrays.pieces import Piece, Pieces
from thalweg.server.deciding import plan as plans
from thalweg.server.deciding.plan import Plan
from thalweg.server.deciding.values import Facts

ELEMENTS = 20


@pytest.fixture
def parameters(monkeypatch: pytest.MonkeyPatch) -> Parameters:
    """A share of four chunks, of a job that is some steps on its way."""
    monkeypatch.setattr(plans, "CHUNK_BYTES", 20)
    parameters = Parameters(Plan(make_spec(microbatches=1), Facts(ELEMENTS, 4, 0, metrics=())))
    for step in range(3):
        take_step(parameters, step)
    return parameters


def take_step(parameters: Parameters, step: int, pieces: Pieces | None = None) -> None:
    root, plan = tree.root(1), parameters.plan
    for chunk in parameters.chunks:
        values = np.random.default_rng([step, chunk]).normal(size=5).astype(np.float32)
        parameters.keep(step, root, chunk, values)
        if pieces:
            pieces.before_update(step, range(chunk, chunk + 1))
        assert parameters.apply(step, step, range(chunk, chunk + 1), 1.0)
    parameters.promote(step + 1, step)
    assert plan.chunks == 4


@pytest.mark.parametrize("sent", [0, 3, 8])
def test_a_copy_is_of_the_version_at_which_it_was_asked_for(parameters: Parameters, sent: int) -> None:
    pieces = Pieces(7, parameters)
    expected = {name: slab.copy() for name, slab in parameters.slabs.items()}
    waiting: list[Piece] = list(pieces.copy(1, state=True))
    assert len(waiting) == 8
    assert not any(piece.made for piece in waiting)
    for piece in waiting[:sent]:
        piece.message()
    take_step(parameters, 3, pieces)
    # The parameters' next version lies in the other buffer: of the next step's update only the state needs a copy before.
    assert sum(piece.made for piece in waiting) == max(4, sent) if sent != 3 else 7
    take_step(parameters, 4, pieces)
    assert all(piece.made for piece in waiting)
    take_step(parameters, 5, pieces)
    found = {name: np.zeros(ELEMENTS, np.float32) for name in expected}
    for piece in waiting:
        message = piece.message()
        assert (message.share, message.copied.copy) == (7, 1)
        found[message.copied.slab][parameters.where(message.copied.chunk)] = np.frombuffer(message.copied.data, np.float32)
    for name, slab in expected.items():
        assert found[name].tobytes() == slab.tobytes()


def test_parameters_alone_are_copied_if_that_is_wanted(parameters: Parameters) -> None:
    pieces = Pieces(7, parameters)
    assert {piece.message().copied.slab for piece in pieces.copy(1, state=False)} == {PARAMETERS}


def test_before_anything_may_change_all_is_copied(parameters: Parameters) -> None:
    pieces = Pieces(7, parameters)
    waiting = list(pieces.copy(1, state=True))
    pieces.before_change()
    assert all(piece.made for piece in waiting)
