"""Tokens that a server issues: those with a name and a role, and those of workers.

A server keeps the SHA-256 of a token, never the token. A slow hash, as for passwords, would add nothing: it makes guessing dear,
and nobody guesses 256 random bits.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from thalweg.contract.tokens import ISSUED
from thalweg.server.access.principal import Role

_BYTES = 32
# A job's id has letters, digits and hyphens; what follows the last hyphen has no hyphens.
_WORKER = f"{ISSUED}job-"


class TokenRecord(NamedTuple):
    """What a server keeps of a token. Times are seconds since 1970; `expires` and `revoked` are None for never."""

    digest: bytes
    name: str
    role: Role
    created: float
    expires: float | None = None
    revoked: float | None = None

    def has_expired(self, now: float) -> bool:
        """Whether its time is over."""
        return self.expires is not None and self.expires <= now

    def is_valid(self, now: float) -> bool:
        """Whether its bearers are let in."""
        return self.revoked is None and not self.has_expired(now)


class TokenStore(Protocol):
    """Where a server keeps tokens. All of it blocks; a write that returned is durable."""

    def tokens(self) -> Sequence[TokenRecord]:
        """All that are on record, in the order in which they were added."""
        ...

    def add_token(self, record: TokenRecord) -> None:
        """Adds a token."""
        ...

    def revoke_tokens(self, name: str, now: float) -> None:
        """Revokes the tokens of a name that are not revoked."""
        ...

    def secret(self, name: str) -> bytes:
        """A secret of this data folder, of 32 random bytes. It is made when it is asked for the first time."""
        ...


def new_token() -> str:
    """A token, which nobody can guess."""
    return ISSUED + secrets.token_urlsafe(_BYTES)


def digest_of(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).digest()


def worker_token(secret: bytes, job_id: str, created: int) -> str:
    """The token of a job's workers. It follows from the server's secret, so that it survives a restart and is kept nowhere.

    `created` is when the job was created, in microseconds: a later job of the same id has another token.
    """
    proof = hmac.digest(secret, f"worker {job_id} {created}".encode(), "sha256").hex()
    return f"{_WORKER}{job_id}-{proof}"


def job_of(token: str) -> str | None:
    """The job that a token says it is for; None if it is not a worker's token. It may be forged."""
    if not token.startswith(_WORKER):
        return None
    job_id, _, proof = token.removeprefix(_WORKER).rpartition("-")
    return job_id if proof else None
