"""The database of a data folder: its connection, its transactions, and the room that it gives back.

A write that returned is durable. All of it blocks, and belongs to one thread.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thalweg.server.storage.reserve import RESERVE_BYTES, Reserve
from thalweg.server.storage.tables import schema

FILE = "jobs.sqlite"
# Pages of 4 KiB that are given back at a time: events wait meanwhile.
_FREED_PAGES = 1024
# Pages in use of an earlier release's database that is written anew at once: 256 MiB.
_REWRITTEN_PAGES = 1 << 16


class Database:
    """An open database, of this release's format. Raises NewerFormatError if a newer release wrote it."""

    def __init__(self, folder: Path, reserve: Reserve) -> None:
        # To open a database takes some room, too. Without it, nothing could be deleted after a restart.
        reserve.use(lambda: self._open(folder / FILE))

    def _open(self, path: Path) -> None:
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            # Of a database that is new: the pages of what is deleted can be given back.
            self._database.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
            # What a burst of events has made of its log is given back when the log begins anew.
            self._database.execute(f"PRAGMA journal_size_limit = {RESERVE_BYTES}")
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
        """What happens in the context happens as a whole or not at all."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield self._database
            self._database.execute("COMMIT")
        except BaseException:
            # Some failures, a full disk's among them, SQLite rolls back by itself.
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def _probe(self) -> None:
        """Raises sqlite3.OperationalError if nothing can be written now."""
        with self._transaction() as database:
            # The same content: a page is written all the same.
            database.execute("UPDATE releases SET release = release WHERE number = (SELECT max(number) FROM releases)")

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
