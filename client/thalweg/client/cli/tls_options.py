"""The options that name the files of TLS."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from thalweg.client.cli.options import user_path
from thalweg.client.cli.tls_files import given
from thalweg.contract.tls import CA, CERT, CLIENT_CA, KEY

TlsCa = Annotated[
    Path | None,
    typer.Option(
        CA,
        parser=user_path,
        metavar="FILE",
        envvar="THALWEG_TLS_CA",
        help="Connect with TLS, to a server whose certificate an authority in this file has signed (PEM).",
        show_default="connects without TLS",
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        CERT,
        parser=user_path,
        metavar="FILE",
        envvar="THALWEG_TLS_CERT",
        help="The certificate by which this end proves who it is (PEM).",
        show_default="none",
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(
        KEY,
        parser=user_path,
        metavar="FILE",
        envvar="THALWEG_TLS_KEY",
        help="The private key of that certificate (PEM).",
        show_default="none",
    ),
]
TlsClientCa = Annotated[
    Path | None,
    typer.Option(
        CLIENT_CA,
        parser=user_path,
        metavar="FILE",
        envvar="THALWEG_TLS_CLIENT_CA",
        help="Require of everyone who connects a certificate that an authority in this file has signed (PEM).",
        show_default="requires none",
    ),
]


def with_tls(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of TLS beside that of the token, if it has one; `given_tls` reads them.

    Servers, shards and fleets have such options of their own, and are left as they are.
    """
    names = inspect.signature(command).parameters
    if "token_file" not in names or "tls_ca" in names:
        return command

    @wraps(command)
    def run(*, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None, **arguments: Any) -> None:
        given.set((tls_ca, tls_cert, tls_key))
        command(**arguments)

    kinds = {"tls_ca": TlsCa, "tls_cert": TlsCert, "tls_key": TlsKey}
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in kinds.items()
    ]
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        if parameter.name == "token_file":
            parameters += added
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
