"""The `thalweg` command: its parts, and the only place that turns errors into lines and exit codes."""

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from thalweg.client.cli import jobfiles, jobs, listing
from thalweg.client.cli.models import data_check, doctor, gradcheck, results
from thalweg.client.cli.operating import audit, backups, certs, nodes, tokens
from thalweg.client.cli.output import StreamError, complain, exit_code, forget_empty_size, make_streams_tolerant
from thalweg.client.cli.serving import command as serving
from thalweg.client.cli.serving import web
from thalweg.client.cli.signals import InterruptedBySignalError
from thalweg.client.cli.tls_options import with_tls
from thalweg.client.cli.training import command as train
from thalweg.contract.errors import ThalwegError
from thalweg.contract.resources import raise_descriptor_limit
from thalweg.contract.rules import alternatives, rules_of
from thalweg.v1 import job_pb2


def _without_kind(option: TyperOption | None) -> TyperOption | None:
    """The option --help, shown as the other switches are: without the kind of its value."""
    if option is not None:
        option.metavar = ""
    return option


class _Command(TyperCommand):
    # Typer has no public name for the type of the context.
    def get_help_option(self, ctx: Any) -> TyperOption | None:
        return _without_kind(super().get_help_option(ctx))


class _Group(TyperGroup):
    def get_help_option(self, ctx: Any) -> TyperOption | None:
        return _without_kind(super().get_help_option(ctx))


app = typer.Typer(
    cls=_Group,
    name="thalweg",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_CHOICES = "\n\n".join(
    f"[dim]{name}[/] {', '.join(choices)}"
    for name, choices in {
        "model.layers": alternatives(job_pb2.Layer, "kind"),
        "model.loss": rules_of(job_pb2.Model.DESCRIPTOR.fields_by_name["loss"]).one_of,
        "data": alternatives(job_pb2.Data, "source"),
        "training.gradient": rules_of(job_pb2.Training.DESCRIPTOR.fields_by_name["gradient"]).one_of,
        "training.synchrony": alternatives(job_pb2.Synchrony, "policy"),
        "optimizer": alternatives(job_pb2.Optimizer, "kind"),
        "optimizer.schedule": alternatives(job_pb2.Schedule, "kind"),
    }.items()
)

_PANELS: dict[str, list[Callable[..., None]]] = {
    "Train": [train.train, gradcheck.gradcheck, doctor.doctor, jobfiles.init],
    "Inspect results": [results.plot, results.predict, results.weights],
    "Run a cluster": [
        serving.serve,
        serving.shard,
        serving.fleet,
        nodes.nodes,
        nodes.cordon,
        nodes.drain,
        nodes.uncordon,
        web.web,
        backups.backup,
        backups.restore,
    ],
    "Jobs": [jobs.submit, listing.jobs, jobfiles.show, jobs.watch, jobs.scale, jobs.share, jobs.cancel, jobs.delete],
}


def _described(command: Callable[..., None]) -> str:
    """A command's docstring, which is its help, or why there is none."""
    return command.__doc__ or "(PYTHONOPTIMIZE=2, or python -OO, removes descriptions)"


for panel, commands in _PANELS.items():
    for command in commands:
        epilog = _CHOICES if command in (train.train, jobs.submit) else None
        app.command(cls=_Command, rich_help_panel=panel, help=_described(command), epilog=epilog)(with_tls(command))


_data = typer.Typer(cls=_Group, no_args_is_help=True, rich_markup_mode="rich")
_data.command("check", cls=_Command, help=_described(data_check.data_check))(data_check.data_check)


@_data.callback()
def _of_data() -> None:
    """Looks at data before a job learns from it.

    [bold]Examples[/]

    [cyan]thalweg data check trips.csv[/]
    [cyan]thalweg data check trips/ --target price --json[/]
    """


app.add_typer(_data, name="data", rich_help_panel="Train")

_certs = typer.Typer(cls=_Group, no_args_is_help=True, rich_markup_mode="rich")
_certs.command("init", cls=_Command, help=_described(certs.certs_init))(certs.certs_init)
_certs.command("add", cls=_Command, help=_described(certs.certs_add))(certs.certs_add)


@_certs.callback()
def _of_certs() -> None:
    """Makes certificates, with which servers, shards, fleets and clients use TLS.

    [bold]Examples[/]

    [cyan]thalweg certs init tls --server train.example.com[/]
    [cyan]thalweg certs add tls alice --json[/]
    """


app.add_typer(_certs, name="certs", rich_help_panel="Run a cluster")


_audit = typer.Typer(cls=_Group, no_args_is_help=True, rich_markup_mode="rich")
_audit.command("verify", cls=_Command, help=_described(audit.verify))(audit.verify)


@_audit.callback()
def _of_audit() -> None:
    """Verifies the log of who did what on a server: [bold]audit.jsonl[/] in its data folder.

    [bold]Examples[/]

    [cyan]thalweg audit verify /var/lib/thalweg/audit.jsonl --json[/]
    """


app.add_typer(_audit, name="audit", rich_help_panel="Run a cluster")

_tokens = typer.Typer(cls=_Group, no_args_is_help=True, rich_markup_mode="rich")
_OF_TOKENS: dict[str, Callable[..., None]] = {"create": tokens.create, "list": tokens.list_, "revoke": tokens.revoke}
for name, action in _OF_TOKENS.items():
    _tokens.command(name, cls=_Command, help=_described(action))(with_tls(action))


@_tokens.callback()
def _of_tokens() -> None:
    """Makes, lists and revokes tokens: who may use a server, and as what.

    [bold]Examples[/]

    [cyan]thalweg tokens create alice --role submitter --server host:7070[/]
    [cyan]thalweg tokens list --server host:7070 --json[/]
    [cyan]thalweg tokens revoke alice --server host:7070[/]
    """


app.add_typer(_tokens, name="tokens", rich_help_panel="Run a cluster")


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"thalweg {version('thalweg')}\n")
        raise typer.Exit


@app.callback()
def thalweg(
    _: Annotated[
        bool, typer.Option("--version", metavar="", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Trains neural networks on a parameter server and its workers.

    Start with [bold]thalweg train digits[/]: it runs a server, Ray and workers on
    this machine, and trains a network that reads handwritten digits.

    Exit codes: 0 success, 1 failure, 2 wrong input, 130 Ctrl-C.
    """


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line, and ends the process with its exit code."""
    make_streams_tolerant()
    forget_empty_size()
    raise_descriptor_limit()
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line. Returns its exit code."""
    try:
        code = typer.main.get_command(app)(arguments, prog_name="thalweg", standalone_mode=False)
        sys.stdout.flush()
    except ThalwegError as error:
        complain(error)
        return exit_code(error)
    except InterruptedBySignalError as interruption:
        return interruption.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        # The reader has closed the pipe. Python would try to flush again at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except StreamError as error:
        complain(f"cannot print: {error.strerror}")
        return 1
    except OSError as error:
        if error.filename is None and isinstance(error, FileNotFoundError):
            # Python itself raises it without a name only in tempfile.
            complain(f"{error.strerror}; set TMPDIR to a folder that is writable")
            return 1
        if isinstance(error, PermissionError) and error.filename is not None:
            complain(f"cannot use {error.filename}: {error.strerror}")
            return 1
        return _other(error)
    except Exception as error:  # noqa: BLE001 - a user gets a line, never a traceback
        return _other(error)
    return code if isinstance(code, int) else 0


def _other(error: Exception) -> int:
    """Usage errors, which Typer raises in classes of its own, and unexpected errors."""
    format_message = getattr(error, "format_message", None)
    if format_message:
        # Without any argument, the help was printed.
        message = str(format_message()).strip()
        if message:
            complain(f"{message} (see thalweg --help)")
        return int(getattr(error, "exit_code", 2))
    if os.environ.get("THALWEG_TRACEBACK"):
        raise error
    complain(f"unexpected {type(error).__name__}: {error}".rstrip(": "))
    complain("this is a bug; set THALWEG_TRACEBACK=1 to see where")
    return 1
