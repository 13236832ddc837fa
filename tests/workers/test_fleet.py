"""What a fleet tells the process that drives Ray while its server comes and goes. Ray itself is left out."""

import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.cluster import running_server, stub_of
from tests.server.specs import make_spec
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.server.process import Server, ServerConfig
from thalweg.v1 import fleet_service_pb2 as fleets
from thalweg.v1 import training_service_pb2 as pb
from thalweg.workers.ray import fleet as module
from thalweg.workers.ray.config import FleetConfig
from thalweg.workers.ray.fleet import Fleet
from thalweg.workers.ray.messages import Alive, Hold


class Driver:
    """In the place of the process that drives Ray: notes what it is told."""

    def __init__(self) -> None:
        self.told: queue.SimpleQueue[fleets.AttendResponse | Hold] = queue.SimpleQueue()
        self.tell = self.told.put

    def hang_up(self) -> None:
        """Nothing ends."""


def test_a_fleet_keeps_its_workers_for_a_while_when_it_loses_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with running_server(tmp_path) as server, stub_of(server) as stub:
        stub.CreateJob(pb.CreateJobRequest(spec=make_spec(workers=2), job_id="a"))
        address = server.address
        fleet, driver = Fleet(FleetConfig(Endpoint(address), allow_code=True)), Driver()
        inside: Any = fleet
        inside._driver = driver
        inside._set_cluster(Alive(2, ("one",)))
        attending = threading.Thread(target=inside._attend)
        attending.start()

        def given() -> None:
            told = driver.told.get()
            assert isinstance(told, fleets.AttendResponse)
            assert [(each.job_id, each.workers) for each in told.allotments] == [("a", 2)]

        given()
        assert [(each.allow_code, each.allow_requirements) for each in server.jobs.places.fleets.attending] == [(True, False)]
    # The server is gone: what runs goes on.
    assert isinstance(driver.told.get(), Hold)
    again = Server(ServerConfig(address=Address(address.host, address.port), data=tmp_path))
    again.start()
    try:
        inside._set_cluster(Alive(2, ("one",), {"a": (2, 1)}))
        given()
    finally:
        again.stop()
    assert isinstance(driver.told.get(), Hold)
    inside._let_go()
    assert driver.told.empty(), "not yet"
    monkeypatch.setattr(module, "_GRACE_SECONDS", 0.0)
    inside._let_go()
    assert driver.told.get() == fleets.AttendResponse()
    fleet.stop()
    attending.join()
    where = f"the server at {address}"
    assert [message for message in caplog.messages if message.startswith("connected")] == [f"connected to {where}"] * 2
    assert any(message.startswith(f"lost {where}: ") for message in caplog.messages)
