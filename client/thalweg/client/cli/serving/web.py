"""The command that serves the page of a server that runs elsewhere."""

import sys
from typing import Annotated

import typer

from thalweg.client.cli.options import Json, TokenFile, read_token, server_of
from thalweg.client.cli.serving.running import address_of, address_with_port, announce, wait
from thalweg.client.cli.serving.web_options import WEB_PORT, WebHost, WebTlsCert, WebTlsKey
from thalweg.client.cli.signals import Inbox
from thalweg.client.cli.tls_files import given_tls
from thalweg.client.composition import start_page
from thalweg.contract.endpoint import DEFAULT_PORT, Endpoint


def web(
    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The server.",
            show_default=f"THALWEG_SERVER in the environment, else 127.0.0.1:{DEFAULT_PORT}",
        ),
    ] = None,
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The address of the page; port 0 for any free port.")
    ] = f"127.0.0.1:{WEB_PORT}",
    token_file: TokenFile = None,
    web_tls_cert: WebTlsCert = None,
    web_tls_key: WebTlsKey = None,
    web_host: WebHost = None,
    trust_network: Annotated[
        bool,
        typer.Option(
            "--trust-network",
            metavar="",
            help="Serve the page without HTTPS beyond loopback: anyone on the network can read it, and the tokens of users.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Serves a page that shows a server's jobs and its cluster in a browser, until Ctrl-C or SIGTERM.

    Users log in with their tokens for the server. On a terminal, the address
    that is printed logs in with this command's own token.

    [bold]Examples[/]

    [cyan]thalweg web --server host:7070[/]
    [cyan]thalweg web --server host:7070 --address 0.0.0.0:8443 --web-tls-cert page.pem --web-tls-key page-key.pem[/]
    """
    where = address_of("--server", server_of(server, None) or f"127.0.0.1:{DEFAULT_PORT}")
    at, token = address_with_port("--address", address, WEB_PORT), read_token(token_file)
    with Inbox() as inbox:
        page = start_page(
            Endpoint(where, token, given_tls()),
            at,
            certificate=web_tls_cert,
            key=web_tls_key,
            hosts=web_host or (),
            trust_network=trust_network,
            invite=sys.stdout.isatty(),
        )
        try:
            announce({"address": str(page.address), "page": page.link, "server": str(where)}, f"the page is at {page.link}", json)
            wait(inbox)
        finally:
            page.stop()
