"""What a server keeps, as the rest of it sees that: jobs, their events, what they leave, and uploads.

All of it blocks. A write that returned is durable; one that raised has changed nothing, but for what a full disk is written
later. What writes raises OSError or sqlite3.OperationalError if the disk refuses (`room.lacks_room` tells whether it may succeed
later), and sqlite3.IntegrityError if the record does not allow it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from thalweg.contract.layout import Slab
from thalweg.server.arrays.downloads import Download
from thalweg.server.deciding.allotment.closures import Closed
from thalweg.server.storage.checkpoints import Checkpoints
from thalweg.v1 import job_pb2, training_service_pb2


class Uploads(Protocol):
    """The files that were uploaded, each under the SHA-256 of its content."""

    def whole(self, sha256: str) -> bool:
        """Whether an upload is there and undamaged. From now on it counts as new. Reads all of it."""
        ...

    def exists(self, sha256: str) -> bool:
        """Whether an upload is there, damaged or not."""
        ...

    def received(self, name: str) -> int:
        """The number of bytes of a file that were received and are not an upload; 0 if there are none."""
        ...

    def receive(self, name: str, data: bytes | memoryview) -> None:
        """Takes the next bytes of a file. `finish` makes it an upload; then, or else, `discard` clears up.

        If its name is the SHA-256 of an upload, what was received outlives the server, and is removed as unused uploads are.
        """
        ...

    def finish(self, name: str, sha256: str) -> bool:
        """Makes what was received an upload, in place of a damaged one. False if it has another SHA-256."""
        ...

    def discard(self, name: str) -> None:
        """Removes what was received and did not become an upload."""
        ...

    def read(self, sha256: str, start: int, size: int) -> bytes | None:
        """At most `size` bytes of an upload from a position; none at its end. None if there is no such upload."""
        ...

    def in_place(self, sha256: str) -> Path | None:
        """Where other processes of this machine can read an upload; None if they cannot."""
        ...


class Storage(Protocol):
    """What one server keeps.

    What concerns jobs on record and their events belongs to one thread; checkpoints, results and uploads may be used beside it.
    """

    @property
    def folder(self) -> Path:
        """Where it lies, for messages."""
        ...

    @property
    def written_by(self) -> str:
        """The release that used it last."""
        ...

    @property
    def uploads(self) -> Uploads:
        """The uploads."""
        ...

    def close(self) -> None:
        """Ends its use."""
        ...

    # Jobs on record.

    def insert_job(self, job: job_pb2.Job, request_id: str, name: str, parts: Sequence[str] = ()) -> job_pb2.Job | None:
        """Adds a job, with an id made from `name` if it has none. Gives the job of an equal request id, if there is one.

        `parts` are SHA-256s of uploads that it uses besides those that its specification names. None if the id is taken.
        """
        ...

    def job_of_request(self, request_id: str) -> job_pb2.Job | None:
        """The job that a request made, if it had an id and made one."""
        ...

    def job(self, job_id: str) -> job_pb2.Job | None:
        """One job, as it was last recorded."""
        ...

    def jobs(self, limit: int, before: int | None = None, reader: str | None = None) -> list[tuple[int, job_pb2.Job]]:
        """Jobs with their numbers, the newest first, from those numbered less than `before`.

        With a `reader`, those of which he is the owner, and shared ones.
        """
        ...

    def share_job(self, job_id: str, shared: bool) -> None:
        """Lets all others read a job, or no longer."""
        ...

    def keep_job(self, job_id: str, kept: bool) -> None:
        """Keeps a job's result for good, or no longer."""
        ...

    def results(self, limit: int, before: int | None = None) -> list[tuple[int, job_pb2.Job]]:
        """Jobs with their numbers whose results nobody keeps, and were not removed, as `jobs` gives them."""
        ...

    def note_result_removed(self, job_id: str, time: float) -> None:
        """A job's result is removed, at a time in seconds since 1970. One that has succeeded needs its uploads no more."""
        ...

    def delete_job(self, job_id: str) -> None:
        """Removes a job, its events, its files, and the uploads that no other job uses: all of it or, if it raises, nothing.

        What it took on the disk is free after `empty_bin`. A full disk takes deletions.
        """
        ...

    def count_deaths(self, running: Iterable[str]) -> dict[str, int]:
        """To be called when a server starts, with the jobs that ran when the one before ended: how often in a row a server died
        while they ran and had not made any progress that lasts. Durable when it returns.
        """
        ...

    def forget_deaths(self, job_id: str) -> None:
        """Somebody resumes a job, knowing what it did: the count begins anew, and it will have a result again."""
        ...

    def note_progress(self, job_id: str) -> None:
        """A job has made progress that lasts: a death of this server does not count against it."""
        ...

    def stop_cleanly(self) -> None:
        """The server stops and did not die."""
        ...

    # Fleets and nodes that are closed.

    def cordons(self) -> list[Closed]:
        """What is closed, by name."""
        ...

    def put_cordon(self, closed: Closed) -> None:
        """Records that a fleet or a node is closed, in the place of what was on record of it."""
        ...

    def remove_cordon(self, fleet: str, node: str) -> None:
        """Records that a fleet or a node is open."""
        ...

    # Events on record.

    def record(self, events: Iterable[tuple[str, training_service_pb2.Event]]) -> None:
        """Appends events to their jobs; a change of state also becomes the job's record. All or none."""
        ...

    def events(self, job_id: str, after: int, limit: int) -> list[training_service_pb2.Event]:
        """Events of a job after a sequence number, in order."""
        ...

    def last_sequence(self, job_id: str) -> int:
        """The sequence number of a job's last event; 0 if it has none."""
        ...

    def told(self, job_id: str) -> tuple[int, int]:
        """How many steps, and how many epochs, a job's events tell of."""
        ...

    def thin(self) -> bool:
        """Merges some older events of a job whose record grows. Whether there may be more to do. Durable when it returns."""
        ...

    # Owners of uploads.

    def own_upload(self, sha256: str, owner: str) -> None:
        """Somebody has shown that he has the content of an upload."""
        ...

    def is_readable(self, sha256: str, reader: str) -> bool:
        """Whether a name has uploaded a file, or is the owner of a job that uses it, or such a job is shared."""
        ...

    def is_used_by(self, sha256: str, job_id: str) -> bool:
        """Whether a job uses an upload."""
        ...

    # Files of jobs.

    def checkpoints(self, job_id: str) -> Checkpoints:
        """The checkpoints of a job."""
        ...

    def save_parameters(self, job_id: str, header: training_service_pb2.ParametersHeader, slab: Slab) -> None:
        """Keeps a job's parameters."""
        ...

    def parameters(self, job_id: str) -> Download[training_service_pb2.ParametersHeader] | None:
        """The parameters that a job kept, tensor by tensor. Raises ValueError if they are damaged."""
        ...

    def remove_result(self, job_id: str) -> int:
        """Removes the parameters and the trajectory that a job kept. Gives their size in bytes. What reads them goes on."""
        ...

    def save_trajectory(self, job_id: str, header: training_service_pb2.TrajectoryHeader, slabs: Sequence[Slab]) -> None:
        """Keeps the slabs of a job's trajectory, each of shape (elements)."""
        ...

    def trajectory(self, job_id: str) -> Download[training_service_pb2.TrajectoryHeader] | None:
        """The trajectory that a job kept, of shape (versions, elements). Raises ValueError if it is damaged."""
        ...

    def export_parameters(self, job_id: str) -> str | None:
        """Copies the parameters that a job kept into an upload, and gives its SHA-256. None if it kept none."""
        ...

    def check_initial(self, sha256: str, dtype: str) -> None:
        """Raises ValueError if an upload cannot be what a model of this dtype starts from."""
        ...

    def initial(self, sha256: str) -> dict[str, Slab]:
        """The tensors of an upload that a job starts from.

        Raises ValueError if it is not what was uploaded, or not a whole safetensors file, and OSError if it cannot be read.
        """
        ...

    # Room.

    def probe(self) -> None:
        """Raises OSError or sqlite3.OperationalError if nothing can be written now."""
        ...

    def shrink(self) -> bool:
        """Gives some of the room back that deleted records have left. Whether there is more to be given back."""
        ...

    def empty_bin(self) -> None:
        """Removes the files of deleted jobs."""
        ...

    def remove_unused_uploads(self) -> None:
        """Removes the uploads that came long ago and that no job uses."""
        ...
