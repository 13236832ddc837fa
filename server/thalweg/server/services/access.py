"""AccessService: tokens, for administrators; and who the caller is, for all."""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc

from thalweg.contract.errors import ThalwegError
from thalweg.server import validation
from thalweg.server.access.principal import Role, Scope, caller
from thalweg.server.access.table import TABLE
from thalweg.server.access.tokens import TokenRecord
from thalweg.server.services.guarding.credentials import Credentials
from thalweg.server.services.guarding.guard import errors
from thalweg.v1 import access_service_pb2 as pb
from thalweg.v1 import access_service_pb2_grpc

_log = logging.getLogger(__name__)
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class AccessService(access_service_pb2_grpc.AccessServiceServicer):
    """Translates calls about tokens."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Context) -> pb.CreateTokenResponse:
        async with errors(context):
            validation.check_request(request)
            with _durably():
                secret, record = await self._credentials.create(request.name, Role(request.role), request.valid_seconds)
            _log.info("token of %s, %s: made by %s", record.name, record.role, caller().principal.name)
            return pb.CreateTokenResponse(secret=secret, token=self._token(record))

    async def ListTokens(self, _: pb.ListTokensRequest, context: Context) -> pb.ListTokensResponse:
        async with errors(context):
            return pb.ListTokensResponse(tokens=map(self._token, self._credentials.records()))

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Context) -> pb.RevokeTokenResponse:
        async with errors(context):
            with _durably():
                record = await self._credentials.revoke(request.name)
            _log.info("token of %s, %s: revoked by %s", record.name, record.role, caller().principal.name)
            return pb.RevokeTokenResponse(token=self._token(record))

    async def GetCaller(self, _: pb.GetCallerRequest, context: Context) -> pb.GetCallerResponse:
        async with errors(context):
            principal = caller().principal
            methods = sorted(
                method.rpartition("/")[2] for method, row in TABLE.items() if row.scope(principal.role) is not Scope.NONE
            )
            return pb.GetCallerResponse(name=principal.name, role=principal.role, methods=methods)

    def _token(self, record: TokenRecord) -> pb.Token:
        token = pb.Token(name=record.name, role=record.role, valid=self._credentials.is_valid(record))
        token.create_time.FromMicroseconds(int(record.created * 1e6))
        if record.expires is not None:
            token.expire_time.FromMicroseconds(int(record.expires * 1e6))
        if record.revoked is not None:
            token.revoke_time.FromMicroseconds(int(record.revoked * 1e6))
        return token


@contextmanager
def _durably() -> Iterator[None]:
    """Raises ThalwegError if what is done within cannot be recorded."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise ThalwegError("STORAGE_FAILED", {"problem": str(error)}) from error
