"""Who may use a server: its tokens, for administrators, and who a client is to it."""

from typing import NamedTuple

from thalweg.client.connection import Connection
from thalweg.v1 import access_service_pb2 as pb


class Caller(NamedTuple):
    """Who a client is to its server: the name and the role of its token, and the methods that the role may call."""

    name: str
    role: str
    methods: tuple[str, ...]


class Access:
    """The tokens of a server. Made by `Client.access`. Every failure raises ThalwegError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def caller(self) -> Caller:
        """Who this client is."""
        answer = self._connection.call(self._connection.access.GetCaller, pb.GetCallerRequest())
        return Caller(answer.name, answer.role, tuple(answer.methods))

    def create(self, name: str, role: str, valid_seconds: float = 0.0) -> pb.CreateTokenResponse:
        """Makes a token, which expires after some seconds; 0 for never. Its secret is in the answer and nowhere else.

        `role` is one of viewer, submitter, fleet and admin. For administrators. Not repeated if the connection breaks: the
        answer would be lost, and `revoke` makes the name free again.
        """
        request = pb.CreateTokenRequest(name=name, role=role, valid_seconds=valid_seconds)
        return self._connection.call(self._connection.access.CreateToken, request, retry=False)

    def tokens(self) -> list[pb.Token]:
        """All tokens, the oldest first, also those that are no longer valid. For administrators."""
        return list(self._connection.call(self._connection.access.ListTokens, pb.ListTokensRequest()).tokens)

    def revoke(self, name: str) -> pb.Token:
        """Makes the token of a name invalid at once. For administrators."""
        return self._connection.call(self._connection.access.RevokeToken, pb.RevokeTokenRequest(name=name), retry=False).token
