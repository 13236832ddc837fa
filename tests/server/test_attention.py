"""A server that stood still does not consider peers lost that it only could not hear."""

import asyncio
import time
from pathlib import Path

import pytest

from thalweg.server.arrays.sharded.registry import ShardLink, ShardRegistry
from thalweg.server.driving.attention import Attention
from thalweg.server.driving.jobs import Jobs
from thalweg.server.settings import RunSettings
from thalweg.server.storage.folder import DataFolder


@pytest.mark.parametrize(("late", "missed"), [(0.0, 0.0), (0.4, 0.0), (0.6, 0.6), (13.0, 13.0)])
def test_what_is_missed_is_how_late_the_loop_wakes(late: float, missed: float) -> None:
    now = 100.0
    attention = Attention(0.025, 10.0, lambda: now)
    for _ in range(3):
        now += 0.025
        assert attention.missed() == 0.0
        now += 0.025 + late
        assert attention.missed() == pytest.approx(missed)


def test_shards_are_not_silent_while_nobody_listens() -> None:
    now = 100.0
    shards, shard = ShardRegistry(lambda: now), ShardLink("a", lambda: now)
    shards.attending.append(shard)
    now += 13.0
    assert shards.silent(10.0, missed=12.9) == []
    assert shards.silent(10.0) == []
    now += 11.0
    assert shards.silent(10.0) == [shard]


def test_runs_are_told_how_long_nobody_listened(tmp_path: Path) -> None:
    async def test() -> None:
        jobs = Jobs(DataFolder(tmp_path), RunSettings(silence_seconds=1.0))
        told: list[float] = []
        jobs.upkeep.tick_runs = told.append  # type: ignore[assignment,method-assign]
        await jobs.start(resume_unfinished=True)
        while len(told) < 3:
            await asyncio.sleep(0)
        time.sleep(0.2)
        while not any(told):
            await asyncio.sleep(0)
        assert max(told) > 0.1
        await jobs.stop()

    asyncio.run(test())
