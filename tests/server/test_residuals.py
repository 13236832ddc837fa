"""Error feedback, as the server sees it."""

from thalweg.contract.tree import Node
from thalweg.server.arrays.residual_audit import Residuals


def test_what_is_lost_is_noticed() -> None:
    residuals, first, second = Residuals(), Node(0, 0), Node(0, 1)
    assert not residuals.lost(first, 0, 0)
    assert not residuals.lost(first, 0, 0)
    assert residuals.lost(second, 0, 7)  # another worker's
    assert not residuals.lost(second, 0, 7)
    assert residuals.lost(second, 0, 0)  # the first one's, who had gone on though its answers came too late
    assert not residuals.lost(first, 1, 0)
    assert residuals.lost(first, 1, 3)  # the same worker's, of whose answer only a part was in time
    assert not residuals.lost(first, 0, 0)
