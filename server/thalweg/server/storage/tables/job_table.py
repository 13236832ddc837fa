"""The jobs on record, the uploads that each uses, and how often the server died while it ran."""

from collections.abc import Iterable, Sequence

from thalweg.server.storage.tables.database import Database
from thalweg.server.storage.uses import uploads_of
from thalweg.v1 import job_pb2

_JOB = "SELECT number, job, owner, shared, kept, result_removed FROM jobs"


def _job(record: bytes, owner: str, shared: int, kept: int, result_removed: float | None) -> job_pb2.Job:
    """A job from its record, which may be older than a change of who may read it, and of how long its result is kept."""
    job = job_pb2.Job.FromString(record)
    job.owner, job.shared, job.kept = owner, bool(shared), bool(kept)
    job.ClearField("result_removed_time")
    if result_removed is not None:
        job.result_removed_time.FromMicroseconds(int(result_removed * 1e6))
    return job


class JobTable(Database):
    """The jobs in a database."""

    def insert_job(self, job: job_pb2.Job, request_id: str, name: str, parts: Sequence[str] = ()) -> job_pb2.Job | None:
        """Adds a job, with an id made from `name` if it has none. Gives the job of an equal request id, if there is one.

        `parts` are SHA-256s of uploads that it uses besides those that its specification names. None if the id is taken.
        """
        with self._transaction() as database:
            known = self.job_of_request(request_id)
            if known:
                return known
            number = None
            if not job.id:
                number = self._free_number(name)
                job.id = f"{name}-{number}"
            elif database.execute("SELECT 1 FROM jobs WHERE id = ?", (job.id,)).fetchone():
                return None
            values = (number, job.id, request_id or None, job.SerializeToString(), job.owner, job.shared)
            database.execute("INSERT INTO jobs (number, id, request_id, job, owner, shared) VALUES (?, ?, ?, ?, ?, ?)", values)
            database.execute("INSERT INTO tallies (job_id, steps, epochs) VALUES (?, 0, 0)", (job.id,))
            self._use_uploads(job, parts)
        return job

    def _use_uploads(self, job: job_pb2.Job, parts: Sequence[str]) -> None:
        rows = [(job.id, sha256) for sha256 in sorted({*uploads_of(job.spec), *parts})]
        self._database.executemany("INSERT INTO uploads_used VALUES (?, ?)", rows)

    def job_of_request(self, request_id: str) -> job_pb2.Job | None:
        """The job that a request made, if it had an id and made one."""
        return self._found(f"{_JOB} WHERE request_id = ?", request_id or None)

    def _free_number(self, name: str) -> int:
        """The number from which a job's id is made. Later numbers are larger, so that no made id comes back."""
        (last,) = self._database.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
        number = int(last) + 1
        while self.job(f"{name}-{number}") is not None:
            number += 1
        return number

    def job(self, job_id: str) -> job_pb2.Job | None:
        """One job, as it was last recorded."""
        return self._found(f"{_JOB} WHERE id = ?", job_id)

    def _found(self, query: str, value: str | None) -> job_pb2.Job | None:
        row = self._database.execute(query, (value,)).fetchone()
        return _job(*row[1:]) if row else None

    def jobs(self, limit: int, before: int | None = None, reader: str | None = None) -> list[tuple[int, job_pb2.Job]]:
        """Jobs with their numbers, the newest first, from those numbered less than `before`.

        With a `reader`, those of which he is the owner, and shared ones.
        """
        rows = self._database.execute(
            f"{_JOB} WHERE number < ? AND (? IS NULL OR owner = ? OR shared) ORDER BY number DESC LIMIT ?",
            (before or 1 << 62, reader, reader, limit),
        )
        return [(number, _job(*rest)) for number, *rest in rows]

    def share_job(self, job_id: str, shared: bool) -> None:
        """Lets all others read a job, or no longer."""
        with self._transaction() as database:
            database.execute("UPDATE jobs SET shared = ? WHERE id = ?", (shared, job_id))

    def keep_job(self, job_id: str, kept: bool) -> None:
        """Keeps a job's result for good, or no longer."""
        with self._transaction() as database:
            database.execute("UPDATE jobs SET kept = ? WHERE id = ?", (kept, job_id))

    def results(self, limit: int, before: int | None = None) -> list[tuple[int, job_pb2.Job]]:
        """Jobs with their numbers whose results nobody keeps, and were not removed, as `jobs` gives them."""
        wanted = "number < ? AND NOT kept AND result_removed IS NULL ORDER BY number DESC LIMIT ?"
        return [
            (number, _job(*rest))
            for number, *rest in self._database.execute(f"{_JOB} WHERE {wanted}", (before or 1 << 62, limit))
        ]

    def note_result_removed(self, job_id: str, time: float) -> None:
        """A job's result is removed, at a time in seconds since 1970. One that has succeeded needs its uploads no more."""
        with self._transaction() as database:
            job = self.job(job_id)
            database.execute("UPDATE jobs SET result_removed = ? WHERE id = ?", (time, job_id))
            if job and job.state == job_pb2.JOB_STATE_SUCCEEDED:
                database.execute("DELETE FROM uploads_used WHERE job_id = ?", (job_id,))

    def _last_result_removed(self) -> list[str]:
        """The job whose result was the last to be removed, if any was."""
        query = "SELECT id FROM jobs WHERE result_removed IS NOT NULL ORDER BY result_removed DESC LIMIT 1"
        return [job_id for (job_id,) in self._database.execute(query)]

    def _uploads_used(self) -> set[str]:
        return {sha256 for (sha256,) in self._database.execute("SELECT DISTINCT sha256 FROM uploads_used")}

    def _number_of(self, job_id: str) -> int | None:
        row = self._database.execute("SELECT number FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return int(row[0]) if row else None

    def _delete_records(self, job_id: str) -> list[str]:
        """Removes a job and its events from the database, and gives the uploads that no other job uses."""
        with self._transaction() as database:
            others = "SELECT 1 FROM uploads_used AS other WHERE other.sha256 = mine.sha256 AND other.job_id != mine.job_id"
            # Another owner may be about to create a job that uses it.
            owners = (
                "SELECT 1 FROM upload_owners AS other WHERE other.sha256 = mine.sha256 "
                "AND other.owner != (SELECT owner FROM jobs WHERE id = mine.job_id)"
            )
            unneeded = f"NOT EXISTS ({others}) AND NOT EXISTS ({owners})"
            query = f"SELECT sha256 FROM uploads_used AS mine WHERE job_id = ? AND {unneeded}"  # noqa: S608 - constants
            unused = [str(sha256) for (sha256,) in database.execute(query, (job_id,)).fetchall()]
            database.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
        return unused

    def count_deaths(self, running: Iterable[str]) -> dict[str, int]:
        """To be called when a server starts, with the jobs that ran when the one before ended: how often in a row a server died
        while they ran and had not made any progress that lasts. Durable when it returns.
        """
        with self._transaction() as database:
            if database.execute("SELECT 1 FROM clean_stop").fetchone():
                database.execute("DELETE FROM clean_stop")
                database.execute("DELETE FROM deaths")
                return {}
            for job_id in running:
                database.execute("INSERT OR IGNORE INTO deaths VALUES (?, 0)", (job_id,))
                database.execute("UPDATE deaths SET deaths = deaths + 1 WHERE job_id = ?", (job_id,))
            return dict(database.execute("SELECT job_id, deaths FROM deaths"))

    def forget_deaths(self, job_id: str) -> None:
        """Somebody resumes a job, knowing what it did: the count begins anew, and it will have a result again."""
        with self._transaction() as database:
            database.execute("DELETE FROM deaths WHERE job_id = ?", (job_id,))
            database.execute("UPDATE jobs SET result_removed = NULL WHERE id = ?", (job_id,))

    def note_progress(self, job_id: str) -> None:
        """A job has made progress that lasts: a death of this server does not count against it."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO deaths VALUES (?, -1)", (job_id,))

    def stop_cleanly(self) -> None:
        """The server stops and did not die."""
        with self._transaction() as database:
            database.execute("INSERT OR IGNORE INTO clean_stop VALUES (1)")
