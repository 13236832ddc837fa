"""What a server keeps on disk: jobs and their events in SQLite, parameters and uploaded data in files.

Everything here blocks. What uses the database belongs to one thread, and what uses no more than files of results and uploads to
another one (see `journal.py`). A write that returned is durable.
"""

import base64
import hashlib
import logging
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from thalweg.contract import layout as layouts
from thalweg.contract import preparation, tensors
from thalweg.contract.layout import Slab
from thalweg.server.arrays.downloads import Download
from thalweg.server.storage import initial, schema
from thalweg.server.storage.bin import Bin
from thalweg.server.storage.checkpoints import Checkpoints
from thalweg.server.storage.disk import RealDisk, publish
from thalweg.server.storage.privacy import keep_private
from thalweg.server.storage.reserve import Reserve
from thalweg.server.storage.thinning import BOUNDS, NOTHING, Bounds, Tally, Thinning
from thalweg.server.storage.uploads import Uploads
from thalweg.server.storage.uses import uploads_of
from thalweg.server.telemetry import told
from thalweg.v1 import job_pb2, training_service_pb2

_log = logging.getLogger(__name__)
PARAMETERS_FILE = "parameters.safetensors"
TRAJECTORY_FILE = "trajectory.safetensors"
_SLABS = "slabs"
# SQLite's integers end here; the contract's go on.
_MAX_INTEGER = (1 << 63) - 1
# Pages of 4 KiB that are given back at a time: events wait meanwhile.
_FREED_PAGES = 1024
# Pages in use of an earlier release's database that is written anew at once: 256 MiB.
_REWRITTEN_PAGES = 1 << 16


class Storage:
    """The data folder of one server."""

    def __init__(self, folder: Path, bounds: Bounds = BOUNDS) -> None:
        self.folder = folder
        self._disk = RealDisk()
        keep_private(folder)
        self.uploads = Uploads(folder / "uploads", self._disk)
        self._reserve = Reserve(folder)
        # To open a database takes some room, too. Without it, nothing could be deleted after a restart.
        self._reserve.use(self._open)
        self._thinning = Thinning(self._database, bounds)
        self._bin = Bin(folder)
        self._bin.restore(self._number_of)
        self._bin.empty()
        self.remove_unused_uploads()
        self._reserve.fill_unless_used()

    def _open(self) -> None:
        self._database = sqlite3.connect(self.folder / "jobs.sqlite", check_same_thread=False, isolation_level=None)
        try:
            # Of a database that is new: the pages of what is deleted can be given back.
            self._database.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
            with self._transaction() as database:
                # The release that used the folder last.
                self.written_by = schema.migrate(database)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Closes the database."""
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield self._database
            self._database.execute("COMMIT")
        except BaseException:
            # Some failures, a full disk's among them, SQLite rolls back by itself.
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def insert_job(self, job: job_pb2.Job, request_id: str, name: str) -> job_pb2.Job | None:
        """Adds a job, with an id made from `name` if it has none. Gives the job of an equal request id, if there is one.

        None if the id is taken.
        """
        with self._transaction() as database:
            known = self.job_of_request(request_id)
            if known:
                return known
            if not job.id:
                job.id = self._free_id(name)
            elif database.execute("SELECT 1 FROM jobs WHERE id = ?", (job.id,)).fetchone():
                return None
            values = (job.id, request_id or None, job.SerializeToString())
            database.execute("INSERT INTO jobs (id, request_id, job) VALUES (?, ?, ?)", values)
            database.execute("INSERT INTO tallies (job_id, steps, epochs) VALUES (?, 0, 0)", (job.id,))
            self._use_uploads(job)
        return job

    def _use_uploads(self, job: job_pb2.Job) -> None:
        rows = [(job.id, sha256) for sha256 in uploads_of(job.spec)]
        self._database.executemany("INSERT INTO uploads_used VALUES (?, ?)", rows)

    def remove_unused_uploads(self) -> None:
        """Removes the uploads that came long ago and that no job uses. Raises OSError."""
        self.uploads.remove_unused({sha256 for (sha256,) in self._database.execute("SELECT DISTINCT sha256 FROM uploads_used")})

    def shrink(self) -> bool:
        """Gives some of the room back that deleted records have left in the database. Whether there is more to be given back."""
        free = self._free_pages()
        if not free:
            return False
        (kind,) = self._database.execute("PRAGMA auto_vacuum").fetchone()
        if kind:
            # As a script: each step of this statement frees one page, and `execute` takes one.
            self._database.executescript(f"PRAGMA incremental_vacuum({_FREED_PAGES})")
            self._checkpoint_log()
            return 0 < self._free_pages() < free
        # An earlier release made it: it is written anew, once, which takes long if much of it is in use.
        (pages,) = self._database.execute("PRAGMA page_count").fetchone()
        if pages - free <= _REWRITTEN_PAGES:
            self._database.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._database.execute("VACUUM")
            self._checkpoint_log()
        return False

    def _checkpoint_log(self) -> None:
        """Brings the database's own file up to date, which else happens later."""
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _free_pages(self) -> int:
        return int(self._database.execute("PRAGMA freelist_count").fetchone()[0])

    def job_of_request(self, request_id: str) -> job_pb2.Job | None:
        """The job that a request made, if it had an id and made one."""
        row = self._database.execute("SELECT job FROM jobs WHERE request_id = ?", (request_id or None,)).fetchone()
        return job_pb2.Job.FromString(row[0]) if row else None

    def _free_id(self, name: str) -> str:
        # Counts jobs ever added, so that the id of a deleted job does not come back.
        (last,) = self._database.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
        number = int(last) + 1
        while self.job(f"{name}-{number}") is not None:
            number += 1
        return f"{name}-{number}"

    def job(self, job_id: str) -> job_pb2.Job | None:
        """One job, as it was last recorded."""
        row = self._database.execute("SELECT job FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return job_pb2.Job.FromString(row[0]) if row else None

    def jobs(self, limit: int, before: int | None = None) -> list[tuple[int, job_pb2.Job]]:
        """Jobs with their numbers, the newest first, from those numbered less than `before`."""
        rows = self._database.execute(
            "SELECT number, job FROM jobs WHERE number < ? ORDER BY number DESC LIMIT ?", (before or 1 << 62, limit)
        )
        return [(number, job_pb2.Job.FromString(blob)) for number, blob in rows]

    def _number_of(self, job_id: str) -> int | None:
        row = self._database.execute("SELECT number FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return int(row[0]) if row else None

    def delete_job(self, job_id: str) -> None:
        """Removes a job, its events, its files, and the uploads that no other job uses: all of it or, if it raises, nothing.

        What it took on the disk is free after `empty_bin`. A full disk has room in reserve for this.
        """
        number = self._number_of(job_id)
        if number is None:
            return
        aside = self._bin.put(self.job_folder(job_id), f"{number}-{job_id}")
        try:
            unused = self._reserve.use(lambda: self._delete_records(job_id))
        except BaseException:
            if aside:
                aside.rename(self.job_folder(job_id))
            raise
        # Uploads last: as long as there is the job, so is what it can be resumed with.
        for sha256 in unused:
            try:
                self._bin.put(self.upload(sha256), f"upload-{sha256}")
            except OSError as error:
                _log.warning("cannot remove an upload that no job uses, a later start will: %s", error)

    def _delete_records(self, job_id: str) -> list[str]:
        """Removes a job and its events from the database, and gives the uploads that no other job uses."""
        with self._transaction() as database:
            others = "SELECT 1 FROM uploads_used AS other WHERE other.sha256 = mine.sha256 AND other.job_id != mine.job_id"
            query = f"SELECT sha256 FROM uploads_used AS mine WHERE job_id = ? AND NOT EXISTS ({others})"  # noqa: S608 - constants
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
        """Somebody resumes a job, knowing what it did: the count begins anew."""
        with self._transaction() as database:
            database.execute("DELETE FROM deaths WHERE job_id = ?", (job_id,))

    def note_progress(self, job_id: str) -> None:
        """A job has made progress that lasts: a death of this server does not count against it."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO deaths VALUES (?, -1)", (job_id,))

    def stop_cleanly(self) -> None:
        """The server stops and did not die."""
        with self._transaction() as database:
            database.execute("INSERT OR IGNORE INTO clean_stop VALUES (1)")

    def empty_bin(self) -> None:
        """Removes the files of deleted jobs, and puts room in reserve again. Uses no database."""
        self._bin.empty()
        self._reserve.fill()

    def probe(self) -> None:
        """Raises OSError or sqlite3.OperationalError if nothing can be written now. Uses the database."""
        self._reserve.probe()
        with self._transaction() as database:
            # The same content: a page is written all the same.
            database.execute("UPDATE releases SET release = release WHERE number = (SELECT max(number) FROM releases)")

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

    def job_folder(self, job_id: str) -> Path:
        """Where a job's files lie."""
        return self.folder / "jobs" / job_id

    def checkpoints(self, job_id: str) -> Checkpoints:
        """The checkpoints of a job."""
        return Checkpoints(self.job_folder(job_id) / "checkpoints", self._disk)

    def save_parameters(self, job_id: str, header: training_service_pb2.ParametersHeader, slab: Slab) -> None:
        """Keeps a job's parameters as a safetensors file."""
        path = self.job_folder(job_id) / PARAMETERS_FILE
        # The message says it, too; this is for those who read the file without it.
        said = {preparation.PREPROCESSING: preparation.to_json(header.preprocessing)}
        self._save(path, layouts.views(header.layout, slab), header.SerializeToString(), said)

    def parameters(self, job_id: str) -> Download[training_service_pb2.ParametersHeader] | None:
        """The parameters that a job kept, tensor by tensor, where they lie. Raises ValueError if their file is damaged."""
        try:
            found, metadata = tensors.read(self._disk.read(self.job_folder(job_id) / PARAMETERS_FILE))
        except FileNotFoundError:
            # There are none, or the job is deleted just now.
            return None
        header = training_service_pb2.ParametersHeader.FromString(base64.b64decode(metadata[layouts.HEADER]))
        return Download(header, [found[tensor.name] for tensor in header.layout.tensors])

    def export_parameters(self, job_id: str) -> str | None:
        """Copies the parameters that a job kept into an upload, and gives its SHA-256. None if it kept none."""
        kept = self.parameters(job_id)
        if kept is None:
            return None
        named = {tensor.name: array for tensor, array in zip(kept.header.layout.tensors, kept.arrays, strict=True)}
        name = str(uuid.uuid4())
        try:
            self._disk.write(self.uploads.part(name), tensors.pieces(named, {}))
            with self.uploads.part(name).open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            publish(self._disk, self.uploads.part(name), self.upload(sha256))
        finally:
            self.uploads.discard(name)
        return sha256

    def initial(self, sha256: str) -> dict[str, Slab]:
        """The tensors of an upload that a job starts from.

        Raises ValueError if it is not what was uploaded, or not a whole safetensors file, and OSError if it cannot be read.
        """
        with self.upload(sha256).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise ValueError("is damaged: its SHA-256 differs from that of the upload")
        return initial.read(self.upload(sha256))

    def save_trajectory(self, job_id: str, header: training_service_pb2.TrajectoryHeader, slabs: Sequence[Slab]) -> None:
        """Keeps the slabs of a job's trajectory, each of shape (elements), as one array of shape (versions, elements)."""
        self._save(self.job_folder(job_id) / TRAJECTORY_FILE, {_SLABS: slabs}, header.SerializeToString())

    def trajectory(self, job_id: str) -> Download[training_service_pb2.TrajectoryHeader] | None:
        """The trajectory that a job kept, of shape (versions, elements), where it lies. Raises ValueError if it is damaged."""
        try:
            found, metadata = tensors.read(self._disk.read(self.job_folder(job_id) / TRAJECTORY_FILE))
        except FileNotFoundError:
            return None
        header = training_service_pb2.TrajectoryHeader.FromString(base64.b64decode(metadata[layouts.HEADER]))
        return Download(header, [found[_SLABS]])

    def _save(
        self, path: Path, named: Mapping[str, tensors.Tensor], header: bytes, said: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._disk.make_folder(path.parent)
        aside = path.with_suffix(".part")
        self._disk.write(aside, tensors.pieces(named, {layouts.HEADER: base64.b64encode(header).decode(), **said}))
        publish(self._disk, aside, path)

    def upload(self, sha256: str) -> Path:
        """Where an uploaded file lies, or would lie."""
        return self.uploads.path(sha256)
