"""The data folder of a server: jobs and their events in SQLite, parameters and uploaded data in files.

Everything here blocks. What uses the database belongs to one thread, and what uses no more than files of results and uploads to
another one (see `journal.py`). A write that returned is durable.
"""

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from thalweg.contract.durations import duration_text
from thalweg.contract.layout import Slab
from thalweg.server.settings import KEEP_UPLOADS_SECONDS
from thalweg.server.storage import initial
from thalweg.server.storage.bin import Bin
from thalweg.server.storage.disk import RealDisk
from thalweg.server.storage.job_files import JobFiles
from thalweg.server.storage.privacy import keep_private
from thalweg.server.storage.reserve import Reserve
from thalweg.server.storage.tables.cordon_table import CordonTable
from thalweg.server.storage.tables.event_table import EventTable
from thalweg.server.storage.tables.job_table import JobTable
from thalweg.server.storage.tables.token_table import TokenTable
from thalweg.server.storage.tables.upload_table import UploadTable
from thalweg.server.storage.thinning import BOUNDS, Bounds
from thalweg.server.storage.uploads import UploadFiles

_log = logging.getLogger(__name__)


class DataFolder(JobTable, EventTable, UploadTable, TokenTable, CordonTable, JobFiles):
    """The storage of a server in a folder. Raises NewerFormatError if a newer release wrote it."""

    uploads: UploadFiles

    def __init__(self, folder: Path, bounds: Bounds = BOUNDS, keep_uploads_seconds: float = KEEP_UPLOADS_SECONDS) -> None:
        keep_private(folder)
        self._reserve = Reserve(folder)
        # First: the folder of a newer release is left as it was.
        EventTable.__init__(self, folder, self._reserve, bounds)
        disk = RealDisk()
        JobFiles.__init__(self, folder, disk, UploadFiles(folder / "uploads", disk, keep_uploads_seconds))
        self._bin = Bin(folder)
        self._bin.restore(self._number_of)
        self._bin.empty()
        # They are removed one by one: all before the last one are gone.
        for job_id in self._last_result_removed():
            self.remove_result(job_id)
        self.remove_unused_uploads()
        self._reserve.fill_unless_used()

    def probe(self) -> None:
        """Raises OSError or sqlite3.OperationalError if nothing can be written now. Uses the database."""
        self._reserve.probe()
        self._probe()

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
                self._bin.put(self.uploads.path(sha256), f"upload-{sha256}")
            except OSError as error:
                _log.warning("cannot remove an upload that no job uses, a later start will: %s", error)

    def empty_bin(self) -> None:
        """Removes the files of deleted jobs, and puts room in reserve again. Uses no database."""
        self._bin.empty()
        self._reserve.fill()

    def remove_unused_uploads(self) -> None:
        """Removes the uploads that came long ago and that no job uses. Raises OSError."""
        removed = self.uploads.remove_unused(self._uploads_used())
        if gone := [sha256 for sha256 in self._owned_uploads() if not self.uploads.exists(sha256)]:
            self._disown_uploads(gone)
        if removed.files:
            count = f"{removed.files:,} upload{'' if removed.files == 1 else 's'}"
            kept = duration_text(self.uploads.keep_seconds)
            _log.info("removed %s that no job used for %s: %s bytes", count, kept, f"{removed.size:,}")

    def owned(self, owner: str) -> tuple[Sequence[str], Sequence[str]]:
        """The SHA-256s of an owner's uploads, and the ids of its jobs. Uses the database."""
        return self._uploads_of(owner), self._jobs_of(owner)

    def size_of(self, uploads: Sequence[str], jobs: Sequence[str]) -> int:
        """The bytes of uploads and of the files of jobs. Uses no database."""
        paths = [self.uploads.path(sha256) for sha256 in uploads]
        for job_id in jobs:
            paths += [path for path in self.job_folder(job_id).rglob("*") if not path.is_dir()]
        size = 0
        for path in paths:
            # It may be removed meanwhile.
            with suppress(FileNotFoundError):
                size += path.stat().st_size
        return size

    def initial(self, sha256: str) -> dict[str, Slab]:
        """The tensors of an upload that a job starts from.

        Raises ValueError if it is not what was uploaded, or not a whole safetensors file, and OSError if it cannot be read.
        """
        with self.uploads.path(sha256).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise ValueError("is damaged: its SHA-256 differs from that of the upload")
        return initial.read(self.uploads.path(sha256))

    def check_initial(self, sha256: str, dtype: str) -> None:
        """Raises ValueError if an upload cannot be what a model of this dtype starts from. Reads none of its values."""
        initial.check(self.uploads.path(sha256), dtype)
