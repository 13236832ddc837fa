"""The format of a data folder: a number in its database, and the steps from each number to the next.

A folder of an older format is migrated when it is opened; one of a newer format is refused. A step that has been released never
changes: what comes later is a step of its own.
"""

import secrets
import sqlite3
from collections.abc import Callable
from importlib.metadata import version

from thalweg.server.storage.uses import uploads_of
from thalweg.v1 import job_pb2


class NewerFormatError(Exception):
    """A newer release wrote the data folder; the message names both releases and formats."""


def _first(database: sqlite3.Connection) -> None:
    """The tables of the releases before formats were numbered, whichever of them are there."""
    database.execute(
        "CREATE TABLE IF NOT EXISTS jobs ("
        "number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, request_id TEXT UNIQUE, job BLOB NOT NULL)"
    )
    database.execute(
        "CREATE TABLE IF NOT EXISTS events (job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, "
        "sequence INTEGER NOT NULL, event BLOB NOT NULL, PRIMARY KEY (job_id, sequence)) WITHOUT ROWID"
    )
    if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'uploads_used'").fetchone():
        return
    database.execute(
        "CREATE TABLE uploads_used (job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, sha256 TEXT NOT NULL, "
        "PRIMARY KEY (job_id, sha256)) WITHOUT ROWID"
    )
    database.execute("CREATE INDEX uploads_used_by_sha256 ON uploads_used (sha256)")
    for (blob,) in database.execute("SELECT job FROM jobs").fetchall():
        job = job_pb2.Job.FromString(blob)
        database.executemany("INSERT INTO uploads_used VALUES (?, ?)", [(job.id, sha256) for sha256 in uploads_of(job.spec)])


def _second(database: sqlite3.Connection) -> None:
    """Which releases wrote the folder, and how often in a row the server died while a job ran."""
    database.execute("CREATE TABLE releases (number INTEGER PRIMARY KEY, release TEXT NOT NULL, format INTEGER NOT NULL)")
    database.execute(
        "CREATE TABLE deaths (job_id TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE, deaths INTEGER NOT NULL)"
    )
    database.execute("CREATE TABLE clean_stop (number INTEGER PRIMARY KEY CHECK (number = 1))")


def _third(database: sqlite3.Connection) -> None:
    """What each job's events tell of in all, and how far the older ones are merged. See `thinning.py`."""
    database.execute(
        "CREATE TABLE tallies (job_id TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE, "
        # NULL until the events of an earlier release have been read.
        "steps INTEGER, epochs INTEGER, "
        # Bytes of events that are not merged, or more.
        "fresh INTEGER NOT NULL DEFAULT 0, "
        # The merged part: up to which number it goes, the stride of its losses, and what it has.
        "upto INTEGER NOT NULL DEFAULT 0, stride INTEGER NOT NULL DEFAULT 1, losses INTEGER NOT NULL DEFAULT 0, "
        "parcels INTEGER NOT NULL DEFAULT 0, notices INTEGER NOT NULL DEFAULT 0, routine INTEGER NOT NULL DEFAULT 0, "
        # Every how many epochs one is kept, and how many of the merged part are.
        "epoch_stride INTEGER NOT NULL DEFAULT 1, ends INTEGER NOT NULL DEFAULT 0, "
        # Of a pass over the merged part: what is yet to be removed, and how many parcels the last one left, -1 while it goes on.
        "surplus_notices INTEGER NOT NULL DEFAULT 0, surplus_routine INTEGER NOT NULL DEFAULT 0, "
        "packed INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID"
    )
    # How much there is to be merged is found later, job by job.
    database.execute("INSERT INTO tallies (job_id, fresh) SELECT id, 1 << 40 FROM jobs")


def _fourth(database: sqlite3.Connection) -> None:
    """Who owns jobs, and uploads; the tokens of principals, and what others are derived from. Jobs of before have no owner."""
    database.execute("ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT ''")
    database.execute("ALTER TABLE jobs ADD COLUMN shared INTEGER NOT NULL DEFAULT 0")
    database.execute("CREATE INDEX jobs_by_owner ON jobs (owner)")
    # Who has shown that he has a file, by uploading all of it.
    database.execute(
        "CREATE TABLE upload_owners (sha256 TEXT NOT NULL, owner TEXT NOT NULL, PRIMARY KEY (sha256, owner)) WITHOUT ROWID"
    )
    database.execute(
        "CREATE TABLE tokens (number INTEGER PRIMARY KEY AUTOINCREMENT, digest BLOB NOT NULL UNIQUE, name TEXT NOT NULL, "
        "role TEXT NOT NULL, created REAL NOT NULL, expires REAL, revoked REAL)"
    )
    # What the tokens of workers follow from is made here, where a full disk has room in reserve.
    database.execute("CREATE TABLE secrets (name TEXT PRIMARY KEY, secret BLOB NOT NULL) WITHOUT ROWID")
    database.execute("INSERT INTO secrets VALUES ('worker-tokens', ?)", (secrets.token_bytes(32),))


def _fifth(database: sqlite3.Connection) -> None:
    """Whose results are kept for good, and when others were removed because of their age, in seconds since 1970."""
    database.execute("ALTER TABLE jobs ADD COLUMN kept INTEGER NOT NULL DEFAULT 0")
    database.execute("ALTER TABLE jobs ADD COLUMN result_removed REAL")


def _sixth(database: sqlite3.Connection) -> None:
    """The fleets and nodes at which no workers are started."""
    database.execute(
        "CREATE TABLE cordons (fleet TEXT NOT NULL, node TEXT NOT NULL, closure INTEGER NOT NULL, since REAL NOT NULL, "
        "PRIMARY KEY (fleet, node)) WITHOUT ROWID"
    )


_STEPS: tuple[Callable[[sqlite3.Connection], None], ...] = (_first, _second, _third, _fourth, _fifth, _sixth)
FORMAT = len(_STEPS)


def migrate(database: sqlite3.Connection) -> str:
    """Brings a database to the format of this release, within the caller's transaction, and records the release.

    Gives the release that used it before, this one if there was none. Raises NewerFormatError if it is of a format that this
    release does not know.
    """
    own = version("thalweg")
    for step in _STEPS[found_format(database) :]:
        step(database)
    database.execute(f"PRAGMA user_version = {FORMAT}")
    last = database.execute("SELECT release, format FROM releases ORDER BY number DESC LIMIT 1").fetchone()
    if last != (own, FORMAT):
        database.execute("INSERT INTO releases (release, format) VALUES (?, ?)", (own, FORMAT))
    return str(last[0]) if last else own


def found_format(database: sqlite3.Connection) -> int:
    """The format of a database; 0 for one of the releases before formats were numbered.

    Raises NewerFormatError if this release does not know it.
    """
    found = int(database.execute("PRAGMA user_version").fetchone()[0])
    if found > FORMAT:
        raise NewerFormatError(
            f"it has the data format {found}, written by Thalweg {_last_release(database)}; this is Thalweg "
            f"{version('thalweg')}, which reads formats up to {FORMAT}. Start a release as new as the one that wrote it, or "
            "choose another folder with --data"
        )
    return found


def _last_release(database: sqlite3.Connection) -> str:
    try:
        row = database.execute("SELECT release FROM releases ORDER BY number DESC LIMIT 1").fetchone()
    except sqlite3.OperationalError:
        # A format so new that it keeps releases elsewhere.
        row = None
    return str(row[0]) if row else "of an unknown release"
