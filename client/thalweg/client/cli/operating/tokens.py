"""The commands for tokens: who may use a server, and as what."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table

from thalweg.client.cli.options import Data, Json, Server, TokenFile, connected, user_path
from thalweg.client.cli.output import ago, complain, console, print_json
from thalweg.contract.durations import parse_duration
from thalweg.contract.errors import Violation, invalid
from thalweg.contract.rules import rules_of
from thalweg.v1 import access_service_pb2 as pb

_ROLES = ", ".join(rules_of(pb.CreateTokenRequest.DESCRIPTOR.fields_by_name["role"]).one_of)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose token it is.", show_default=False)]


def create(
    name: Name,
    role: Annotated[str, typer.Option(metavar="ROLE", help=f"What it may do: {_ROLES}.", show_default=False)],
    expires: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How long it is valid, such as 12h or 90d.", show_default="for ever"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", parser=user_path, metavar="FILE", help="A new file for the token.", show_default="it is printed"
        ),
    ] = None,
    server: Server = None,
    token_file: TokenFile = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Makes a token. It is shown once: the server keeps no more than its SHA-256.

    A [bold]viewer[/] sees jobs and their progress. A [bold]submitter[/] also creates
    jobs, and changes their own. A [bold]fleet[/] is for fleets and shards.
    An [bold]admin[/] may do all.

    [bold]Examples[/]

    [cyan]thalweg tokens create alice --role submitter --expires 90d --server host:7070[/]
    [cyan]thalweg tokens create rack-2 --role fleet -o rack-2.token --server host:7070[/]
    """
    seconds = _seconds(expires)
    with connected(server, token_file, data, writes=True) as client:
        if output:
            # Before the token is made, which could not be shown again.
            with os.fdopen(_new_file(output), "w") as file:
                try:
                    made = client.access.create(name, role, seconds)
                except BaseException:
                    output.unlink()
                    raise
                file.write(f"{made.secret}\n")
        else:
            made = client.access.create(name, role, seconds)
    if json:
        print_json(_json(made.token) | ({} if output else {"secret": made.secret}))
    elif output:
        console().print(f"the token of {name} is in {output}", markup=False, soft_wrap=True)
    else:
        sys.stdout.write(f"{made.secret}\n")
        complain(f"this is the token of {name}; it is not shown again")


def list_(server: Server = None, token_file: TokenFile = None, data: Data = None, json: Json = False) -> None:
    """Lists the tokens, also those that are no longer valid. It cannot show the tokens themselves.

    [bold]Examples[/]

    [cyan]thalweg tokens list --server host:7070[/]
    """
    with connected(server, token_file, data) as client:
        tokens = client.access.tokens()
    if json:
        print_json({"tokens": [_json(token) for token in tokens]})
    elif tokens:
        now, table = datetime.now(UTC), Table(box=None, header_style="dim", pad_edge=False)
        for column in ("name", "role", "made", "state"):
            table.add_column(column)
        for token in tokens:
            table.add_row(token.name, token.role, ago(token.create_time.ToDatetime(tzinfo=UTC), now), _state(token))
        console().print(table)
    else:
        console(stderr=True).print("no tokens yet; make one with [cyan]thalweg tokens create[/]")


def revoke(name: Name, server: Server = None, token_file: TokenFile = None, data: Data = None, json: Json = False) -> None:
    """Makes a token invalid at once.

    [bold]Examples[/]

    [cyan]thalweg tokens revoke alice --server host:7070[/]
    """
    with connected(server, token_file, data, writes=True) as client:
        token = client.access.revoke(name)
    if json:
        print_json(_json(token))
    else:
        console().print(f"the token of {token.name} is revoked", markup=False)


def _new_file(path: Path) -> int:
    """The descriptor of a new file that this user alone can read. Raises ThalwegError."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise invalid(Violation("--output", f"cannot make {path}: {error.strerror}")) from error


def _seconds(expires: str | None) -> float:
    if expires is None:
        return 0.0
    try:
        seconds = parse_duration(expires)
    except ValueError as error:
        raise invalid(Violation("--expires", str(error))) from error
    if not seconds:
        raise invalid(Violation("--expires", "must be more than nothing"))
    return seconds


def _state(token: pb.Token) -> str:
    if token.HasField("revoke_time"):
        return f"revoked {_day(token.revoke_time)}"
    if token.HasField("expire_time"):
        return f"{'valid until' if token.valid else 'expired'} {_day(token.expire_time)}"
    return "valid"


def _day(time: Timestamp) -> str:
    return time.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def _json(token: pb.Token) -> dict[str, Any]:
    return {
        "name": token.name,
        "role": token.role,
        "valid": token.valid,
        "created": _time(token.create_time),
        "expires": _time(token.expire_time) if token.HasField("expire_time") else None,
        "revoked": _time(token.revoke_time) if token.HasField("revoke_time") else None,
    }


def _time(time: Timestamp) -> str:
    return time.ToDatetime(tzinfo=UTC).isoformat()
