"""The events of jobs on record, and what they tell of in all."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from thalweg.server.storage.reserve import Reserve
from thalweg.server.storage.tables.database import Database
from thalweg.server.storage.thinning import BOUNDS, NOTHING, Bounds, Merged, Tally, Thinning
from thalweg.server.telemetry import told
from thalweg.v1 import training_service_pb2

# SQLite's integers end here; the contract's go on.
_MAX_INTEGER = (1 << 63) - 1
_READ = f"SELECT job_id, {', '.join(Merged._fields)} FROM tallies WHERE fresh > ? LIMIT 1"  # noqa: S608 - constants
_WRITE = f"UPDATE tallies SET {', '.join(f'{name} = ?' for name in Merged._fields)} WHERE job_id = ?"  # noqa: S608 - constants


class EventTable(Database):
    """The events in a database, whose older ones are merged within bounds."""

    def __init__(self, folder: Path, reserve: Reserve, bounds: Bounds = BOUNDS) -> None:
        super().__init__(folder, reserve)
        self._thinning = Thinning(_Merging(self._database), bounds)

    def record(self, events: Iterable[tuple[str, training_service_pb2.Event]]) -> None:
        """Appends events to their jobs; a change of state also becomes the job's record. All or none."""
        tallies: dict[str, Tally] = {}
        with self._transaction() as database:
            for job_id, event in events:
                content = event.SerializeToString()
                database.execute("INSERT INTO events VALUES (?, ?, ?)", (job_id, event.sequence, content))
                tallies[job_id] = tallies.get(job_id, NOTHING).plus(event, len(content))
                if event.HasField("state_changed"):
                    blob = event.state_changed.job.SerializeToString()
                    database.execute("UPDATE jobs SET job = ? WHERE id = ?", (blob, job_id))
            # What is not known yet remains so: the greater of NULL and a number is NULL.
            database.executemany(
                "UPDATE tallies SET steps = max(steps, ?), epochs = max(epochs, ?), fresh = fresh + ? WHERE job_id = ?",
                [(*tally, job_id) for job_id, tally in tallies.items()],
            )

    def thin(self) -> bool:
        """Merges some older events of a job whose record grows. Whether there may be more to do. Durable when it returns."""
        with self._transaction():
            return self._thinning.step()

    def events(self, job_id: str, after: int, limit: int) -> list[training_service_pb2.Event]:
        """Events of a job behind a sequence number, in order."""
        rows = self._database.execute(
            "SELECT event FROM events WHERE job_id = ? AND sequence > ? ORDER BY sequence LIMIT ?",
            (job_id, min(after, _MAX_INTEGER), limit),
        )
        return [training_service_pb2.Event.FromString(blob) for (blob,) in rows]

    def last_sequence(self, job_id: str) -> int:
        """The sequence number of a job's last event; 0 if it has none."""
        query = "SELECT coalesce(max(sequence), 0) FROM events WHERE job_id = ?"
        return int(self._database.execute(query, (job_id,)).fetchone()[0])

    def told(self, job_id: str) -> tuple[int, int]:
        """How many steps, and how many epochs, a job's events tell of."""
        row = self._database.execute("SELECT steps, epochs FROM tallies WHERE job_id = ?", (job_id,)).fetchone()
        if row and row[0] is not None:
            return int(row[0]), int(row[1])
        # Recorded by an earlier release: they are read once.
        rows = self._database.execute("SELECT event FROM events WHERE job_id = ? ORDER BY sequence DESC", (job_id,))
        found = told(training_service_pb2.Event.FromString(blob) for (blob,) in rows)
        with self._transaction() as database:
            database.execute("UPDATE tallies SET steps = ?, epochs = ? WHERE job_id = ?", (*found, job_id))
        return found


class _Merging:
    """The record as thinning sees it, within the caller's transaction."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def grown(self, size: int) -> tuple[str, Merged] | None:
        row = self._database.execute(_READ, (size,)).fetchone()
        return None if row is None else (row[0], Merged(*row[1:]))

    def newest(self, job_id: str) -> Iterator[tuple[int, int]]:
        query = "SELECT sequence, length(event) FROM events WHERE job_id = ? ORDER BY sequence DESC"
        yield from self._database.execute(query, (job_id,))

    def older(self, job_id: str, after: int, before: int, limit: int) -> Iterator[training_service_pb2.Event]:
        query = "SELECT event FROM events WHERE job_id = ? AND sequence > ? AND sequence < ? ORDER BY sequence LIMIT ?"
        for (blob,) in self._database.execute(query, (job_id, after, before, limit)):
            yield training_service_pb2.Event.FromString(blob)

    def replace(self, job_id: str, removed: Sequence[int], changed: Sequence[training_service_pb2.Event]) -> None:
        self._database.executemany(
            "DELETE FROM events WHERE job_id = ? AND sequence = ?", [(job_id, sequence) for sequence in removed]
        )
        rows = [(event.SerializeToString(), job_id, event.sequence) for event in changed]
        self._database.executemany("UPDATE events SET event = ? WHERE job_id = ? AND sequence = ?", rows)

    def set_merged(self, job_id: str, merged: Merged) -> None:
        self._database.execute(_WRITE, (*merged, job_id))

    def set_fresh(self, job_id: str, size: int) -> None:
        self._database.execute("UPDATE tallies SET fresh = ? WHERE job_id = ?", (size, job_id))
