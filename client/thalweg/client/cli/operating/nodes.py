"""The commands for fleets and their nodes: which there are, and which get no workers."""

import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table
from rich.text import Text

from thalweg.client.cli.options import Json, Server, TokenFile, connected
from thalweg.client.cli.output import ago, complain, console, print_json
from thalweg.client.cluster import workers_at
from thalweg.contract.durations import parse_duration
from thalweg.contract.errors import Violation, invalid
from thalweg.v1 import cluster_service_pb2 as pb

_LOOK_SECONDS = 0.2
_CLOSURES = {pb.CLOSURE_UNSPECIFIED: "", pb.CLOSURE_CORDONED: "cordoned", pb.CLOSURE_DRAINED: "drained"}
Target = Annotated[
    str,
    typer.Argument(
        metavar="NODE|FLEET",
        help="The name of a node or a fleet, as [bold]thalweg nodes[/] lists them; FLEET/NODE where several nodes share a name.",
        show_default=False,
    ),
]


def nodes(server: Server = None, token_file: TokenFile = None, json: Json = False) -> None:
    """Lists the fleets of a server, their nodes, and the workers there.

    [bold]Examples[/]

    [cyan]thalweg nodes --server host:7070[/]
    [cyan]thalweg nodes --server host:7070 --json | jq '.fleets[].nodes[].workers'[/]
    """
    with connected(server, token_file, None) as client:
        found = client.cluster.list()
    if json:
        print_json(_json(found))
        return
    if found.draining:
        complain("this server is being drained: it finishes what it has begun, and stops")
    if found.fleets:
        console().print(_table(found))
    else:
        complain("no fleet is connected to this server; start one with thalweg fleet")
    there = {(fleet.name, name) for fleet in found.fleets for name in ("", *(node.name for node in fleet.nodes))}
    for cordon in found.cordons:
        if (cordon.fleet, cordon.node) not in there:
            console().print(f"{_name(cordon)} is {_CLOSURES[cordon.closure]}, and not connected", markup=False)


def cordon(target: Target, server: Server = None, token_file: TokenFile = None, json: Json = False) -> None:
    """Starts no more workers on a node or a fleet. Those that are there stay.

    It lasts, also when the server or the fleet starts again, until
    [bold]thalweg uncordon[/].

    [bold]Examples[/]

    [cyan]thalweg cordon rack-2 --server host:7070[/]
    [cyan]thalweg cordon rack-2/gpu-07 --server host:7070[/]
    """
    with connected(server, token_file, None, writes=True) as client:
        _tell(client.cluster.cordon(target), "gets no more workers", json)


def uncordon(target: Target, server: Server = None, token_file: TokenFile = None, json: Json = False) -> None:
    """Lets a node or a fleet have workers again that was cordoned or drained.

    [bold]Examples[/]

    [cyan]thalweg uncordon rack-2 --server host:7070[/]
    """
    with connected(server, token_file, None, writes=True) as client:
        _tell(client.cluster.uncordon(target), "gets workers again", json)


def drain(
    target: Target,
    at_most: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How long workers may take for the tasks that they have, such as 5m; then others get these tasks.",
            show_default="no limit",
        ),
    ] = None,
    server: Server = None,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Empties a node or a fleet: its workers go, each after the task that it has, and others take their place elsewhere.

    Returns when no worker is left. Ctrl-C ends the waiting, not the
    draining. No result changes. [bold]thalweg uncordon[/] opens it again.

    [bold]Examples[/]

    [cyan]thalweg drain rack-2/gpu-07 --server host:7070[/]
    [cyan]thalweg drain rack-2 --at-most 5m --server host:7070[/]
    """
    until = time.monotonic() + _seconds(at_most) if at_most is not None else None
    with connected(server, token_file, None, writes=True) as client:
        place, said = client.cluster.drain(target), -1
        while left := workers_at(client.cluster.list(), place):
            if left != said and not json:
                console().print(f"{_name(place)}: {_workers(left)} left", markup=False)
            said = left
            if until is not None and time.monotonic() >= until:
                client.cluster.drain(target, now=True)
                until = None
            time.sleep(_LOOK_SECONDS)
    _tell(place, "is empty, and gets no more workers", json)


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise invalid(Violation("--at-most", str(error))) from error


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _name(place: pb.Cordon) -> str:
    return f"node {place.fleet}/{place.node}" if place.node else f"fleet {place.fleet}"


def _tell(place: pb.Cordon, words: str, json: bool) -> None:
    if json:
        print_json(_cordon_json(place))
    else:
        console().print(f"{_name(place)} {words}", markup=False)


def _table(found: pb.ListFleetsResponse) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("fleet", "node", "state", "slots", "GPUs", "workers", "jobs", "since"):
        table.add_column(name, justify="right" if name in {"slots", "GPUs", "workers"} else "left")
    now = datetime.now(UTC)
    for fleet in found.fleets:
        starting = f" (and {fleet.starting} starting)" if fleet.starting else ""
        total = sum(len(node.workers) for node in fleet.nodes)
        since = ago(fleet.since.ToDatetime(tzinfo=UTC), now)
        gpus = sum(node.gpus for node in fleet.nodes)
        table.add_row(fleet.name, "", _state(fleet.closure), str(fleet.slots), str(gpus), f"{total}{starting}", "", since)
        for node in fleet.nodes:
            jobs = ", ".join(dict.fromkeys(worker.job_id for worker in node.workers))
            began = min((worker.since.ToDatetime(tzinfo=UTC) for worker in node.workers), default=None)
            name, used = node.name or node.id, str(len(node.workers))
            times = ago(began, now) if began else ""
            table.add_row("", name, _state(node.closure), str(node.slots), str(node.gpus), used, jobs, times)
    return table


def _state(closure: pb.Closure.ValueType) -> Text:
    return Text(_CLOSURES[closure], style="yellow")


def _json(found: pb.ListFleetsResponse) -> dict[str, Any]:
    return {
        "fleets": [_fleet_json(fleet) for fleet in found.fleets],
        "cordons": [_cordon_json(cordon) for cordon in found.cordons],
        "draining": found.draining,
    }


def _cordon_json(cordon: pb.Cordon) -> dict[str, Any]:
    return {
        "fleet": cordon.fleet,
        "node": cordon.node or None,
        "state": _CLOSURES[cordon.closure] or "open",
        "since": _time(cordon.since),
    }


def _fleet_json(fleet: pb.Fleet) -> dict[str, Any]:
    nodes = [
        {
            "name": node.name,
            "id": node.id,
            "state": _CLOSURES[node.closure] or "open",
            "slots": node.slots,
            "gpus": node.gpus,
            "workers": [
                {"name": each.name, "job": each.job_id, "slots": each.slots, "gpus": each.gpus, "since": _time(each.since)}
                for each in node.workers
            ],
        }
        for node in fleet.nodes
    ]
    state = _CLOSURES[fleet.closure] or "open"
    known = {"name": fleet.name, "id": fleet.id, "state": state, "slots": fleet.slots, "since": _time(fleet.since)}
    return known | {"starting": fleet.starting, "nodes": nodes}


def _time(time_: Timestamp) -> str:
    return time_.ToDatetime(tzinfo=UTC).isoformat()
