"""What holds for all tests."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from threadpoolctl import threadpool_limits

from thalweg.contract.process import prepare

if TYPE_CHECKING:
    from tests.end_to_end.barrier import Barrier

# Before any test imports gRPC, as in the processes of commands.
prepare()

# A shell lets what it runs in the background ignore Ctrl-C, and so would all commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files with such tests take longest.
_LONG = ("docker", "chaos", "ray", "install")

# No test fails because the machine is busy.
settings.register_profile("thalweg", deadline=None)
settings.load_profile("thalweg")


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What workers make from data is of these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THALWEG_DATA_CACHE", str(tmp_path_factory.mktemp("data-cache")))
        yield


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist would begin with the files that have the most tests. The longest have few."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes very long is left out, unless `-m` names it.

    The longest files come first: of several processes that share the files, none then works long after the others.
    """
    if "nightly" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]
    ranks: dict[Path, int] = {}
    for item in items:
        rank = next((rank for rank, mark in enumerate(_LONG) if item.get_closest_marker(mark)), len(_LONG))
        ranks[item.path] = min(rank, ranks.get(item.path, rank))
    items.sort(key=lambda item: ranks[item.path])


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees the servers that its user runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Workers that are threads of this process pin its BLAS as long as they live: the first to end would unpin the others'."""
    with threadpool_limits(1, "blas"):
        yield


@pytest.fixture
def barrier(tmp_path: Path) -> "Iterator[Barrier]":
    """A barrier for the workers in this process."""
    from tests.end_to_end.barrier import Barrier  # imports gRPC

    barrier = Barrier(tmp_path / "barrier.json")
    with barrier.here():
        yield barrier
