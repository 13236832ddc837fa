"""`thalweg nodes`, `cordon`, `drain` and `uncordon`, as an operator sees them."""

import re
from pathlib import Path

import pytest

from tests.client.conftest import Command
from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import ThreadFleet, running_server
from tests.end_to_end.command import wait_for
from tests.end_to_end.test_draining import held
from thalweg.client import Client


def test_an_operator_empties_a_node(command: Command, tmp_path: Path, barrier: Barrier) -> None:
    with running_server(tmp_path / "data") as server, Client(server.address) as client:
        at = ("--server", str(server.address))
        printed = command("nodes", *at)
        assert (printed.code, printed.out) == (0, "")
        assert "no fleet is connected to this server" in printed.err
        with ThreadFleet(server.address, 2, "rack", "gpu-1"):
            job = held(client, barrier)
            (fleet,) = command("nodes", *at, "--json").json["fleets"]
            assert (fleet["name"], fleet["slots"], fleet["state"], fleet["starting"]) == ("rack", 2, "open", 0)
            (node,) = fleet["nodes"]
            assert (node["name"], node["id"], node["slots"], node["gpus"], node["state"]) == ("gpu-1", "gpu-1-id", 2, 0, "open")
            assert {(each["job"], each["slots"]) for each in node["workers"]} == {(job.id, 1)}

            assert command("cordon", "gpu-1", *at).out == "node rack/gpu-1 gets no more workers\n"
            lines = command("nodes", *at).out.splitlines()
            assert lines[0].split() == ["fleet", "node", "state", "slots", "GPUs", "workers", "jobs", "since"]
            assert re.fullmatch(r"rack +2 +0 +2 +.*", lines[1])
            assert re.fullmatch(rf" +gpu-1 +cordoned +2 +0 +2 +{job.id} +.*", lines[2])

            # Its workers hold their tasks until it is time for these to go to others.
            printed = command("drain", "gpu-1", "--at-most", "1s", *at)
            assert printed.out.splitlines() == [
                "node rack/gpu-1: 2 workers left",
                "node rack/gpu-1 is empty, and gets no more workers",
            ]
            assert command("drain", "gpu-1", *at, "--json").json["state"] == "drained"
        wait_for(lambda: not client.cluster.list().fleets)
        assert command("nodes", *at).out == "node rack/gpu-1 is drained, and not connected\n"
        assert command("uncordon", "rack/gpu-1", *at).out == "node rack/gpu-1 gets workers again\n"
        assert command("nodes", *at, "--json").json == {"fleets": [], "cordons": [], "draining": False}


@pytest.mark.parametrize("name", ["cordon", "drain", "uncordon"])
def test_a_name_that_nothing_has_is_an_error(command: Command, tmp_path: Path, name: str) -> None:
    with running_server(tmp_path / "data") as server:
        printed = command(name, "nothing", "--server", str(server.address))
    assert printed.code == 1
    assert printed.err == "thalweg: no fleet and no node is named nothing; thalweg nodes lists them\n"


def test_a_duration_that_is_none_is_an_error(command: Command) -> None:
    printed = command("drain", "gpu-1", "--at-most", "long", "--server", "127.0.0.1:1")
    assert printed.code == 2
    assert "--at-most" in printed.err
