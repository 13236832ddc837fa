"""`thalweg serve --drain`: has a running server end gracefully."""

import time
from pathlib import Path

from thalweg.client.cli.output import console, print_json
from thalweg.client.cli.serving.running import reached
from thalweg.client.client import Client
from thalweg.client.errors import LocalError
from thalweg.client.folders import SERVER_TOKEN, is_locked, running_server
from thalweg.contract.endpoint import Address
from thalweg.contract.errors import ThalwegError
from thalweg.contract.tls import Tls

_LOOK_SECONDS = 0.1
# How long a server takes at most to end after its workers have left.
_STOP_SECONDS = 60.0


def end_server(address: Address | None, folder: Path, token: str | None, tls: Tls | None, seconds: float, json: bool) -> None:
    """Drains the server at an address, or, without one, the server that runs on a folder, and waits until it has stopped.

    Workers have some seconds to finish their tasks. Raises ThalwegError if there is no server, or it does not stop.
    """
    here = address is None
    if address is None:
        if not is_locked(folder):
            raise LocalError(f"no server runs on the data folder {folder}; choose another with --data, or --address")
        address = reached(running_server(folder))
        if token is None and (folder / SERVER_TOKEN).exists():
            token = (folder / SERVER_TOKEN).read_text()
    with Client(address, token, tls=tls) as client:
        client.cluster.end_server(seconds)
        if not json:
            console().print(f"the server at {address} is being drained", markup=False)
        until = time.monotonic() + seconds + _STOP_SECONDS
        while is_locked(folder) if here else _answers(client):
            if time.monotonic() > until:
                raise LocalError(f"the server at {address} has not stopped; its log says why")
            time.sleep(_LOOK_SECONDS)
    if json:
        print_json({"address": str(address), "stopped": True})
    else:
        console().print("it has stopped; its jobs continue when it is started again", markup=False)


def _answers(client: Client) -> bool:
    try:
        client.cluster.list()
    except ThalwegError as error:
        if error.reason == "UNREACHABLE":
            return False
        raise
    return True
