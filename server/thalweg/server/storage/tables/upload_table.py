"""Who may read which upload: those who have uploaded all of it, and those who may read a job that uses it.

Uploads are named by their content, so several may have uploaded the same one, and to know a name is not to have the content.
"""

from thalweg.server.storage.tables.database import Database


class UploadTable(Database):
    """The owners of uploads in a database."""

    def own_upload(self, sha256: str, owner: str) -> None:
        """Somebody has shown that he has the content of an upload."""
        with self._transaction() as database:
            database.execute("INSERT OR IGNORE INTO upload_owners VALUES (?, ?)", (sha256, owner))

    def is_readable(self, sha256: str, reader: str) -> bool:
        """Whether a name has uploaded a file, or is the owner of a job that uses it, or such a job is shared."""
        (readable,) = self._database.execute(
            "SELECT EXISTS (SELECT 1 FROM upload_owners WHERE sha256 = ?1 AND owner = ?2) OR EXISTS ("
            "SELECT 1 FROM uploads_used JOIN jobs ON id = job_id WHERE sha256 = ?1 AND (owner = ?2 OR shared))",
            (sha256, reader),
        ).fetchone()
        return bool(readable)

    def is_used_by(self, sha256: str, job_id: str) -> bool:
        """Whether a job uses an upload."""
        row = self._database.execute("SELECT 1 FROM uploads_used WHERE sha256 = ? AND job_id = ?", (sha256, job_id)).fetchone()
        return row is not None

    def _uploads_of(self, owner: str) -> list[str]:
        """The uploads that somebody has made, or that his jobs use."""
        rows = self._database.execute(
            "SELECT sha256 FROM upload_owners WHERE owner = ?1 "
            "UNION SELECT sha256 FROM uploads_used JOIN jobs ON id = job_id WHERE owner = ?1",
            (owner,),
        )
        return [sha256 for (sha256,) in rows]

    def _jobs_of(self, owner: str) -> list[str]:
        return [job_id for (job_id,) in self._database.execute("SELECT id FROM jobs WHERE owner = ?", (owner,))]

    def _owned_uploads(self) -> list[str]:
        return [sha256 for (sha256,) in self._database.execute("SELECT DISTINCT sha256 FROM upload_owners")]

    def _disown_uploads(self, gone: list[str]) -> None:
        with self._transaction() as database:
            database.executemany("DELETE FROM upload_owners WHERE sha256 = ?", [(sha256,) for sha256 in gone])
