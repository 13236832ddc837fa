"""The tokens of one server: whose a token is, and the making and revoking of those with names."""

import hmac
import time
from collections.abc import Callable, Sequence

from thalweg.contract.errors import ThalwegError, Violation, invalid
from thalweg.contract.tokens import ISSUED
from thalweg.server.access.principal import ADMIN, Principal, Role
from thalweg.server.access.tokens import TokenRecord, TokenStore, digest_of, job_of, new_token, worker_token
from thalweg.server.driving.jobs import Jobs

_WORKERS = "worker-tokens"


class Credentials:
    """Knows the tokens of a server. Belongs to its event loop.

    `own` is the token that the server was started with. Without one, callers without a token that the server issued are
    administrators. `revoked` is called with the name of a token that is revoked. `clock` gives seconds since 1970.
    """

    def __init__(
        self,
        own: str | None,
        store: TokenStore,
        jobs: Jobs,
        revoked: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._revoked = revoked
        self._own = own
        self._store = store
        self._jobs = jobs
        self._clock = clock
        self._secret = b""
        self._records: dict[bytes, TokenRecord] = {}

    async def load(self) -> None:
        """Reads what is on record. Raises OSError or sqlite3.Error."""
        self._secret = await self._jobs.journal.run(self._store.secret, _WORKERS)
        self._records = {record.digest: record for record in await self._jobs.journal.run(self._store.tokens)}

    def authenticate(self, token: str) -> Principal:
        """Whose a token is; it is empty if a call carries none. Raises ThalwegError if it is nobody's, or no longer valid."""
        if self._own is not None and hmac.compare_digest(token.encode(), self._own.encode()):
            return ADMIN
        record = self._records.get(digest_of(token)) if token else None
        if record is not None:
            if record.is_valid(self._clock()):
                return Principal(record.name, record.role, expires=record.expires)
            raise ThalwegError(
                "TOKEN_ENDED", {"name": record.name, "problem": "was revoked" if record.revoked else "has expired"}
            )
        job_id = job_of(token)
        if job_id is not None:
            return self._worker(job_id, token)
        if self._own is None and not token.startswith(ISSUED):
            return ADMIN
        raise ThalwegError("UNAUTHENTICATED")

    def _worker(self, job_id: str, token: str) -> Principal:
        """The worker of a job that has not ended. Raises ThalwegError if the token is not that of the job's workers."""
        expected = self.worker_token(job_id)
        if expected is None or not hmac.compare_digest(token.encode(), expected.encode()):
            raise ThalwegError("UNAUTHENTICATED")
        return Principal(f"worker of {job_id}", Role.WORKER, job_id)

    def worker_token(self, job_id: str) -> str | None:
        """The token of a job's workers; None if the job has ended, or there is no such job."""
        job = self._jobs.unended(job_id)
        return worker_token(self._secret, job_id, job.create_time.ToMicroseconds()) if job else None

    def records(self) -> Sequence[TokenRecord]:
        """The tokens with names, the oldest first."""
        return list(self._records.values())

    def is_valid(self, record: TokenRecord) -> bool:
        """Whether a token can be used now."""
        return record.is_valid(self._clock())

    async def create(self, name: str, role: Role, seconds: float) -> tuple[str, TokenRecord]:
        """Makes a token, which expires after some seconds; 0 for never. Raises ThalwegError if the name is taken."""
        if name == ADMIN.name:
            raise invalid(Violation("name", f"{name!r} is the bearer of the token that the server was started with; use another"))
        now = self._clock()
        if any(record.name == name and record.is_valid(now) for record in self._records.values()):
            raise invalid(Violation("name", f"there is a valid token of {name!r}; revoke it first, or use another name"))
        token = new_token()
        record = TokenRecord(digest_of(token), name, role, now, now + seconds if seconds else None)
        # In memory first: between two calls with one name, nothing else may happen.
        self._records[record.digest] = record
        try:
            await self._jobs.journal.run(self._store.add_token, record)
        except BaseException:
            del self._records[record.digest]
            raise
        return token, record

    async def revoke(self, name: str) -> TokenRecord:
        """Makes the token of a name invalid, and gives it. Raises ThalwegError if there is no valid one."""
        now = self._clock()
        found = [record for record in self._records.values() if record.name == name and record.is_valid(now)]
        if not found:
            raise ThalwegError("TOKEN_NOT_FOUND", {"name": name})
        (record,) = found
        # At once, also while the disk is slow.
        self._records[record.digest] = record = record._replace(revoked=now)
        self._revoked(name)
        await self._jobs.journal.run(self._store.revoke_tokens, name, now)
        return record
