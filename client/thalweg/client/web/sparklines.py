"""Small curves of the loss for the list of jobs, read from the jobs' records a few at a time, and kept."""

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from thalweg.client import records
from thalweg.client.web.curves import Curve, losses, rounded
from thalweg.client.web.gateway import Credential, Gateway

_POINTS = 40
# The record of a running job is read again after this time, from where the last reading ended.
_FRESH_SECONDS = 5.0
# How many jobs are read at a time, and kept.
_BATCH = 8
_MAX_KEPT = 2000


class _Spark:
    def __init__(self) -> None:
        self.curve = Curve(_POINTS)
        self.sequence = 0
        self.due = 0.0
        # The state in which the job was when its record was last read.
        self.state = ""


class Sparklines:
    """The losses of jobs that lists show. Who may see a job is the lists' to know."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._sparks: OrderedDict[str, _Spark] = OrderedDict()

    def of(self, job_id: str) -> list[float | None]:
        """A job's losses, as far as they are known."""
        spark = self._sparks.get(job_id)
        return [rounded(point.mean) for point in spark.curve.points] if spark else []

    async def refresh(self, credential: Credential, rows: Iterable[dict[str, Any]]) -> None:
        """Reads what is new of some of the jobs in a list."""
        now = time.monotonic()
        due = []
        for row in rows:
            spark = self._sparks.setdefault(row["id"], _Spark())
            self._sparks.move_to_end(row["id"])
            # The record of a job that has ended was read to its end.
            if spark.due <= now and not (spark.state == row["state"] and spark.state in records.ENDED):
                due.append((row, spark))
        while len(self._sparks) > _MAX_KEPT:
            self._sparks.popitem(last=False)
        # First those of which nothing is known.
        due.sort(key=lambda each: each[1].due)
        for row, spark in due[:_BATCH]:
            spark.due = now + _FRESH_SECONDS
            await self._read(credential, row["id"], spark)
            spark.state = row["state"]

    async def _read(self, credential: Credential, job_id: str, spark: _Spark) -> None:
        async for message in self._gateway.watch(credential, job_id, spark.sequence, until_now=True):
            spark.sequence = message.sequence
            for step, loss, steps in losses(message.steps_taken):
                spark.curve.add(step, loss, steps)
