"""The tokens on record, and the folder's secrets."""

import secrets
from collections.abc import Sequence

from thalweg.server.access.principal import Role
from thalweg.server.access.tokens import TokenRecord
from thalweg.server.storage.tables.database import Database

_SECRET_BYTES = 32


class TokenTable(Database):
    """The tokens in a database."""

    def tokens(self) -> Sequence[TokenRecord]:
        """All that are on record, in the order in which they were added."""
        rows = self._database.execute("SELECT digest, name, role, created, expires, revoked FROM tokens ORDER BY number")
        return [TokenRecord(digest, name, Role(role), *times) for digest, name, role, *times in rows]

    def add_token(self, record: TokenRecord) -> None:
        """Adds a token."""
        with self._transaction() as database:
            columns = "INSERT INTO tokens (digest, name, role, created, expires, revoked) VALUES (?, ?, ?, ?, ?, ?)"
            database.execute(columns, record._replace(role=record.role.value))  # type: ignore[arg-type]

    def revoke_tokens(self, name: str, now: float) -> None:
        """Revokes the tokens of a name that are not revoked."""
        with self._transaction() as database:
            database.execute("UPDATE tokens SET revoked = ? WHERE name = ? AND revoked IS NULL", (now, name))

    def secret(self, name: str) -> bytes:
        """A secret of this data folder, of 32 random bytes. It is made when it is asked for the first time."""
        query = "SELECT secret FROM secrets WHERE name = ?"
        if row := self._database.execute(query, (name,)).fetchone():
            return bytes(row[0])
        secret = secrets.token_bytes(_SECRET_BYTES)
        with self._transaction() as database:
            database.execute("INSERT INTO secrets VALUES (?, ?)", (name, secret))
        return secret
