"""Threads that share out arithmetic."""

import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from thalweg.server.arrays.pool import ArithmeticPool


@pytest.fixture(params=[1, 3])
def crew(request: pytest.FixtureRequest) -> Iterator[ArithmeticPool]:
    crew = ArithmeticPool(request.param)
    yield crew
    crew.close()


def test_each_item_is_done_once(crew: ArithmeticPool) -> None:
    done: Counter[int] = Counter()

    def act(item: int) -> bool:
        done[item] += 1
        return True

    assert crew.all(act, range(1000))
    assert done == Counter(range(1000))


def test_one_that_is_not_true_is_told_and_the_others_are_done_all_the_same(crew: ArithmeticPool) -> None:
    done: list[int] = []

    def act(item: int) -> bool:
        done.append(item)
        return item != 3

    assert not crew.all(act, range(100))
    assert sorted(done) == list(range(100))


def test_all_threads_take_part() -> None:
    crew, together = ArithmeticPool(3), threading.Barrier(3)

    def act(_: int) -> bool:
        together.wait(60)
        return True

    assert crew.all(act, range(3))
    crew.close()


def test_an_exception_in_any_thread_is_raised(crew: ArithmeticPool) -> None:
    def act(item: int) -> bool:
        if item == 50:
            raise MemoryError("no room")
        return True

    with pytest.raises(MemoryError, match="no room"):
        crew.all(act, range(100))
    assert crew.all(lambda _: True, range(10))
