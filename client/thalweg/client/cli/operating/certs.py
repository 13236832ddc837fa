"""`thalweg certs`: certificates for the processes of a cluster."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from thalweg.client.certificates import AUTHORITY_DAYS, DAYS, LOOPBACK, Authority, Made, check_hosts
from thalweg.client.cli.options import Json, user_path
from thalweg.client.cli.output import console, print_json

_Folder = Annotated[
    Path, typer.Argument(parser=user_path, metavar="DIR", help="The folder of the authority.", show_default=False)
]
_Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--server",
        metavar="HOST",
        help="A name or an IP address by which others reach the server, or the shard. Repeatable.",
        show_default=False,
    ),
]
_Days = Annotated[int, typer.Option(metavar="N", min=1, max=AUTHORITY_DAYS, help="The days for which certificates are valid.")]


def certs_init(
    folder: _Folder,
    server: _Hosts = None,
    days: _Days = DAYS,
    json: Json = False,
) -> None:
    """Makes an authority, and certificates for a server, its fleets and its clients.

    Everyone needs a copy of ca.pem, and of one certificate with its key.
    Keep ca-key.pem where it is: its owner can make further certificates.
    The authority is valid for ten years.

    [bold]Examples[/]

    [cyan]thalweg certs init tls --server train.example.com --server 10.0.0.5[/]
    [cyan]thalweg serve --tls-cert tls/server.pem --tls-key tls/server-key.pem[/]
    [cyan]thalweg jobs --server train.example.com:7070 --tls-ca tls/ca.pem[/]
    """
    check_hosts(server or ())
    authority = Authority.new(folder)
    made = [
        authority.add("server", _of_server(server), days),
        authority.add("fleet", days=days),
        authority.add("client", days=days),
    ]
    _report(authority, made, json)


def certs_add(
    folder: _Folder,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The certificate's name, which its files have, too.", show_default=False)
    ],
    server: _Hosts = None,
    days: _Days = DAYS,
    json: Json = False,
) -> None:
    """Makes one more certificate, or replaces one that is about to expire.

    With --server it is one for a server or a shard, which can be reached at
    these hosts; else one for a client or a fleet. One that replaces another
    names the same hosts, unless others are given.

    [bold]Examples[/]

    [cyan]thalweg certs add tls alice[/]
    [cyan]thalweg certs add tls shard1 --server shard1.example.com[/]
    [cyan]thalweg certs add tls server[/]
    """
    authority = Authority(folder)
    _report(authority, [authority.add(name, _of_server(server) if server else authority.hosts(name), days)], json)


def _of_server(hosts: list[str] | None) -> tuple[str, ...]:
    """The hosts that are given, and those by which a server is reached from its own machine."""
    return tuple(dict.fromkeys([*(hosts or ()), *LOOPBACK]))


def _report(authority: Authority, made: Iterable[Made], json: bool) -> None:
    if json:
        certificates = [
            {"cert": str(each.cert), "key": str(each.key), "hosts": each.hosts, "valid_until": each.until.isoformat()}
            for each in made
        ]
        print_json({"ca": str(authority.cert), "valid_until": authority.until.isoformat(), "certificates": certificates})
        return
    lines = [f"{authority.cert}: the authority, valid until {authority.until:%Y-%m-%d}"]
    for each in made:
        what = f"for a server at {', '.join(each.hosts)}" if each.hosts else "for a client or a fleet"
        lines.append(f"{each.cert}, {each.key.name}: {what}, valid until {each.until:%Y-%m-%d}")
    console().print("\n".join(lines), markup=False, soft_wrap=True)
