"""The options of the page, which `thalweg web` and `thalweg serve` share."""

from pathlib import Path
from typing import Annotated

import typer

from thalweg.client.cli.options import user_path

WEB_PORT = 8080
WebTlsCert = Annotated[
    Path | None,
    typer.Option(
        parser=user_path,
        metavar="FILE",
        help="The certificate of the page, for HTTPS (PEM).",
        show_default="HTTP, on loopback only",
    ),
]
WebTlsKey = Annotated[
    Path | None,
    typer.Option(parser=user_path, metavar="FILE", help="The key of that certificate (PEM).", show_default="none"),
]
WebHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A further name by which browsers reach a page on loopback, such as that of a proxy before it. Repeatable.",
        show_default="localhost and addresses of loopback",
    ),
]
