"""Commands that run a cluster's parts: a server, a shard, a fleet."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from thalweg.client.cli.options import Json, TokenFile, check_token_file, read_token, server_of, user_path
from thalweg.client.cli.serving.ending import end_server
from thalweg.client.cli.serving.log_options import Log, LogFileOption, LogFormat, LogFormatOption
from thalweg.client.cli.serving.running import address_of, address_with_port, announce, reached, wait
from thalweg.client.cli.serving.web_options import WEB_PORT, WebHost, WebTlsCert, WebTlsKey
from thalweg.client.cli.signals import Inbox
from thalweg.client.cli.tls_files import read_server_tls, read_shard_tls, read_tls
from thalweg.client.cli.tls_options import TlsCa, TlsCert, TlsClientCa, TlsKey
from thalweg.client.composition import (
    check_address,
    data_policy,
    owner_limits,
    start_fleet,
    start_page,
    start_server,
    start_shard,
)
from thalweg.client.folders import SERVER_TOKEN, expanded, folder_token, served_folder
from thalweg.contract.durations import duration_text, parse_duration
from thalweg.contract.endpoint import DEFAULT_PORT, Address, Endpoint
from thalweg.contract.errors import Violation, invalid
from thalweg.contract.tokens import published

_log = logging.getLogger(__name__)
_MEBIBYTE = 1 << 20
_MAX_SECONDS = 1e6
# For examples; there is no default.
_METRICS_PORT = 9707
_MIN_KEEP_SECONDS = 600.0
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="The address at which to answer over HTTP: /metrics for Prometheus, /healthz and /readyz.",
        show_default="none",
    ),
]
Traces = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The collector to which traces of steps are sent by OTLP over gRPC, such as http://127.0.0.1:4317.",
        show_default="none",
    ),
]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        metavar="",
        envvar="THALWEG_ALLOW_CODE",
        help="Admit jobs with code of their own, which workers run as the fleet's user. Anyone who may submit jobs can then run "
        "any code on the fleet's machines.",
    ),
]
_SERVER_DEFAULT = f"THALWEG_SERVER in the environment, else 127.0.0.1:{DEFAULT_PORT}"


def serve(
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The address to listen at; port 0 for any free port.",
            show_default=f"127.0.0.1:{DEFAULT_PORT}",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            parser=user_path,
            metavar="FOLDER",
            help="The folder for jobs, parameters and uploads.",
            show_default="~/.local/share/thalweg/server",
        ),
    ] = None,
    token_file: TokenFile = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            parser=user_path,
            metavar="FILE",
            envvar="THALWEG_TLS_CA",
            help="The authorities that have signed the certificates of shards (PEM).",
            show_default="those of --tls-client-ca",
        ),
    ] = None,
    trust_network: Annotated[
        bool,
        typer.Option(
            "--trust-network",
            metavar="",
            help="Require neither a token nor TLS, even from other machines: anyone who can connect is admitted, and anyone on "
            "the network between can read everything. Without this option, a server on loopback admits its own user, and others "
            "only with a token; for other addresses it needs both.",
        ),
    ] = False,
    max_upload: Annotated[
        int | None, typer.Option(metavar="MIB", min=1, help="The largest upload to accept, in MiB.", show_default="1024")
    ] = None,
    max_running: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="The maximum number of jobs to run at a time; others wait.",
            show_default="no limit",
        ),
    ] = None,
    limits: Annotated[
        Path | None,
        typer.Option(
            parser=user_path,
            metavar="FILE",
            help="A file (TOML) with what submitters may use: running_jobs, workers, stored_bytes, uploads, calls_per_second.",
            show_default="no limits",
        ),
    ] = None,
    keep_uploads: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How long to keep uploads that no job uses, such as 12h or 7d; longer than the files of a job take to arrive.",
            show_default="1d",
        ),
    ] = None,
    keep_results: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How long to keep the parameters and trajectories of jobs that have ended, such as 90d. Those of jobs kept by "
            "[bold]thalweg jobs keep[/] stay, and so does what a job needs to be resumed.",
            show_default="for good",
        ),
    ] = None,
    checkpoint_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            min=0,
            max=_MAX_SECONDS,
            help="Seconds between checkpoints of a job; 0 for one after every step.",
            show_default="10",
        ),
    ] = None,
    silence_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            min=0.1,
            max=_MAX_SECONDS,
            help="Seconds of silence after which a worker or a shard counts as lost.",
            show_default="10",
        ),
    ] = None,
    allow_code: AllowCode = False,
    metrics: Metrics = None,
    traces: Traces = None,
    shared_memory: Annotated[
        bool,
        typer.Option(
            "--shared-memory/--no-shared-memory",
            metavar="",
            help="Whether this user's workers on this machine exchange parameters and gradients through shared memory.",
        ),
    ] = True,
    web: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Also serve a page that shows jobs and the cluster in a browser, at this address; see [bold]thalweg web[/].",
            show_default="no page",
        ),
    ] = None,
    web_tls_cert: WebTlsCert = None,
    web_tls_key: WebTlsKey = None,
    web_host: WebHost = None,
    drain: Annotated[
        bool,
        typer.Option(
            "--drain",
            metavar="",
            help="Start no server: have the one that runs on --data, or at --address, finish what it has begun, and stop.",
        ),
    ] = False,
    drain_seconds: Annotated[
        float,
        typer.Option(metavar="S", min=0, max=86400, help="With --drain: the seconds for workers to finish their tasks."),
    ] = 60.0,
    shard_of: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The former name of `thalweg shard`.", hidden=True)
    ] = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_file: LogFileOption = None,
    json: Json = False,
) -> None:
    """Runs a parameter server until Ctrl-C or SIGTERM.

    When it is started again, it resumes jobs that have not ended. To train,
    it needs at least one fleet: see [bold]thalweg fleet --help[/]. With --drain,
    ends a running server: it gives out no more tasks and accepts no jobs,
    waits for the tasks that workers have, and writes checkpoints.

    [bold]Examples[/]

    [cyan]thalweg serve[/]
    [cyan]thalweg serve --address 0.0.0.0:7070 --token-file token --tls-cert tls/server.pem --tls-key tls/server-key.pem[/]
    """
    where = address_of("--address", address or f"127.0.0.1:{DEFAULT_PORT}")
    observed = address_with_port("--metrics", metrics, _METRICS_PORT) if metrics is not None else None
    if traces and not traces.startswith(("http://", "https://")):
        raise invalid(Violation("--traces", f"{traces!r} is not a URL; write http://HOST:PORT, as in http://127.0.0.1:4317"))
    page_at = address_with_port("--web", web, WEB_PORT) if web is not None else None
    token = read_token(token_file)
    tls = read_server_tls(tls_cert, tls_key, tls_client_ca, tls_ca)
    given = {
        "max_upload_bytes": max_upload and max_upload * _MEBIBYTE,
        "max_running_jobs": max_running,
        "keep_uploads_seconds": keep_uploads and _kept(keep_uploads),
        "keep_results_seconds": keep_results and _duration(keep_results, "--keep-results"),
        "checkpoint_seconds": checkpoint_seconds,
        "silence_seconds": silence_seconds,
    }
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if limits:
        settings["limits"] = owner_limits(limits)
    log = Log(log_format, log_file)
    if shard_of is not None:
        if data or settings or not shared_memory:
            raise invalid(Violation("--shard-of", "can be used with --address, --token-file and --trust-network only"))
        _log.warning("thalweg serve --shard-of is now thalweg shard --server")
        tls = read_shard_tls(tls_cert, tls_key, tls_client_ca, tls_ca)
        of = Endpoint(address_of("--shard-of", shard_of), token, tls and tls.as_client())
        _run_shard(where, of, log, json, trust_network=trust_network, tls=tls, metrics=observed)
        return
    if page_at and tls and not tls.as_client():
        raise invalid(Violation("--tls-ca", "goes with --web and --tls-cert: the page verifies the server's certificate"))
    folder = expanded(data or served_folder()).absolute()
    if drain:
        elsewhere = where if address is not None and data is None else None
        end_server(elsewhere, folder, token, read_tls(tls_ca, tls_cert, tls_key), drain_seconds, json)
        return
    own = where.is_loopback and not (token or trust_network)
    with Inbox() as inbox, _private_files(), ExitStack() as stack:
        if not folder.exists():
            # Before the folder is made, so that none is left if the server cannot start.
            check_address(where)
        if own:
            token = folder_token(folder, SERVER_TOKEN)
        settings |= {
            "trust_network": trust_network,
            "shared_memory": shared_memory,
            "allow_code": allow_code,
            "tls": tls,
            "audit": True,
            "drained": lambda: inbox.put(None),
        }
        server = start_server(where, folder, token, metrics=observed, traces=traces or "", **settings)
        stack.callback(server.stop)
        if own:
            _publish(stack, server.listening, token, folder)
        at = " and ".join(map(str, server.listening))
        facts = {"address": str(server.address), "data": str(folder)} | _told(server.metrics)
        words = f"serving at {at}, data in {folder}"
        if page_at:
            page = start_page(
                Endpoint(reached(server.address), token, tls and tls.as_client()),
                page_at,
                option="--web",
                certificate=web_tls_cert,
                key=web_tls_key,
                hosts=web_host or (),
                trust_network=trust_network,
                invite=sys.stdout.isatty(),
            )
            stack.callback(page.stop)
            facts["page"] = page.link
            words += f", its page at {page.link}"
        announce(facts, words, json)
        wait(inbox, log)


def _duration(text: str, option: str) -> float:
    """The seconds of an option's time span."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise invalid(Violation(option, str(error))) from error


def _kept(text: str) -> float:
    """The seconds for which unused uploads are kept."""
    seconds = _duration(text, "--keep-uploads")
    if seconds < _MIN_KEEP_SECONDS:
        problem = f"must be at least {duration_text(_MIN_KEEP_SECONDS)}, so that no file is removed before its job is created"
        raise invalid(Violation("--keep-uploads", problem))
    return seconds


def _publish(stack: ExitStack, addresses: Sequence[Address], token: str | None, folder: Path) -> None:
    """Publishes the token that the server generated, so that this user's clients find it."""
    try:
        stack.enter_context(published(addresses, token or ""))
    except OSError as error:
        problem = "clients cannot find the server's token automatically: %s; give them --token-file %s"
        _log.warning(problem, error, folder / SERVER_TOKEN)


@contextmanager
def _private_files() -> Iterator[None]:
    """Makes the files that this process writes meanwhile readable by this user only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def shard(
    server: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The server.", show_default=_SERVER_DEFAULT),
    ] = None,
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The address to listen at for workers; port 0 for any free port.")
    ] = "127.0.0.1:0",
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    tls_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The name in the certificate by which the server and workers verify this shard.",
            show_default="the host of the address at which they reach it",
        ),
    ] = None,
    trust_network: Annotated[
        bool,
        typer.Option(
            "--trust-network",
            metavar="",
            help="Require neither a token nor TLS, even from other machines: anyone who can connect is admitted.",
        ),
    ] = False,
    metrics: Metrics = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_file: LogFileOption = None,
    json: Json = False,
) -> None:
    """Runs a shard, which holds part of the parameters of a server's jobs, until Ctrl-C or SIGTERM.

    The server and its shards share the traffic and the updates. A shard
    keeps nothing on disk. When one is lost, its jobs return to their last
    checkpoint. Workers must be able to reach the shard at its address.

    [bold]Examples[/]

    [cyan]thalweg shard --server 127.0.0.1:7070[/]
    [cyan]thalweg shard --server host:7070 --address 0.0.0.0:7071 --token-file token --tls-ca ca.pem --tls-cert shard.pem[/]
    [cyan]    --tls-key shard-key.pem[/]
    """
    of = _server_address(server)
    where, token = address_of("--address", address), read_token(token_file)
    observed = address_with_port("--metrics", metrics, _METRICS_PORT) if metrics is not None else None
    tls = read_shard_tls(tls_cert, tls_key, tls_client_ca, tls_ca)
    settings = {"trust_network": trust_network, "tls": tls, "tls_name": tls_name or "", "metrics": observed}
    log = Log(log_format, log_file)
    _run_shard(where, Endpoint(of, token, tls and tls.as_client()), log, json, **settings)


def _run_shard(where: Address, server: Endpoint, log: Log, json: bool, **settings: Any) -> None:
    with Inbox() as inbox:
        shard = start_shard(where, server, **settings)
        try:
            facts = {"address": str(shard.address), "shard_of": str(server.address)}
            announce(facts | _told(shard.metrics), f"a shard of the server at {server.address}, at {shard.address}", json)
            wait(inbox, log)
        finally:
            shard.stop()


def fleet(
    server: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The server.", show_default=_SERVER_DEFAULT)] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="The Ray cluster to run workers on; auto for the one on this machine.",
            show_default="starts a Ray of its own",
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="The number of CPU slots of the Ray that is started.",
            show_default="the CPUs that it may use",
        ),
    ] = None,
    ray_token_file: Annotated[
        Path | None,
        typer.Option(
            parser=user_path,
            metavar="FILE",
            help="The file that holds the Ray cluster's token.",
            show_default="where Ray itself looks for it",
        ),
    ] = None,
    trust_network: Annotated[
        bool,
        typer.Option(
            "--trust-network",
            metavar="",
            help="Join a Ray cluster that requires no token. Anyone who can connect to it can run code there.",
        ),
    ] = False,
    allow_code: AllowCode = False,
    allow_requirements: Annotated[
        bool,
        typer.Option(
            "--allow-requirements",
            metavar="",
            envvar="THALWEG_ALLOW_REQUIREMENTS",
            help="Let Ray install the packages that such jobs require, with pip. Needs --allow-code.",
        ),
    ] = False,
    data_root: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER",
            help="A folder of nodes below which jobs may name files, as in file:///FOLDER/a.parquet. Repeatable.",
            show_default="none",
        ),
    ] = None,
    data_url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PREFIX",
            help="The beginning of URLs that jobs may name, such as s3://bucket or https://host/folder. Repeatable.",
            show_default="all but link-local addresses",
        ),
    ] = None,
    data_cache_bytes: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="BYTES",
            envvar="THALWEG_DATA_CACHE_BYTES",
            help="How much each node keeps of prepared data that no worker uses.",
            show_default="32 GiB",
        ),
    ] = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="A readable name.", show_default="the machine's name")] = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_file: LogFileOption = None,
    json: Json = False,
) -> None:
    """Runs workers for a server's jobs on a Ray cluster, until Ctrl-C or SIGTERM.

    Several fleets, on several Ray clusters, can serve one server.

    [bold]Examples[/]

    [cyan]thalweg fleet --server 127.0.0.1:7070[/]
    [cyan]thalweg fleet --server host:7070 --ray-address auto --ray-token-file ray-token --token-file token --tls-ca ca.pem[/]
    """
    where, token = _server_address(server), read_token(token_file)
    tls = read_tls(tls_ca, tls_cert, tls_key)
    if ray_address and slots:
        raise invalid(Violation("--slots", "cannot be used with --ray-address: the cluster has its own slots"))
    for option, given in {"--ray-token-file": ray_token_file, "--trust-network": trust_network}.items():
        if given and not ray_address:
            raise invalid(Violation(option, "needs --ray-address: a Ray that this command starts makes its own token"))
    if allow_requirements and not allow_code:
        raise invalid(Violation("--allow-requirements", "needs --allow-code: packages are installed for jobs with code alone"))
    check_token_file(ray_token_file, "--ray-token-file")
    log = Log(log_format, log_file)
    with Inbox() as inbox:
        running = start_fleet(
            Endpoint(where, token, tls),
            ray_address=ray_address,
            ray_token_file=ray_token_file,
            trust_network=trust_network,
            slots=slots,
            allow_code=allow_code,
            allow_requirements=allow_requirements,
            data=data_policy(data_root or (), data_url or (), data_cache_bytes),
            name=name,
        )
        inbox.listen()
        try:
            announce(
                {"server": str(where), "name": running.config.name},
                f"fleet {running.config.name} for the server at {where}",
                json,
            )
            wait(inbox, log)
            running.leave()
        finally:
            running.stop()


def _server_address(given: str | None) -> Address:
    """The address of the server of a shard or a fleet."""
    return address_of("--server", server_of(given, None) or f"127.0.0.1:{DEFAULT_PORT}")


def _told(metrics: Address | None) -> dict[str, str]:
    """Where metrics are found, for those who read JSON."""
    return {"metrics": str(metrics)} if metrics else {}
