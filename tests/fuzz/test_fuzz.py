"""What no honest peer sends, to every method of every service: nothing comes of it."""

from pathlib import Path

import pytest

from tests.fuzz import campaign
from tests.fuzz.calls import HONEST, METHODS

# A server has about 110 MiB to begin with, and what 64 calls at a time may send is as much again.
MAX_MIB = 400


def test_every_method_is_called() -> None:
    services = {method.path.split("/")[1] for method in METHODS}
    assert {"thalweg.v1.TrainingService", "thalweg.v1.ParameterService", "thalweg.v1.ShardService"} < services
    assert len(METHODS) >= 23
    # What an honest peer sends is a message of the method's own type.
    for method in METHODS:
        assert {type(message) for message in HONEST[method.path]} == {method.request}


def check(report: campaign.Report, messages: int) -> None:
    assert report.messages >= messages
    assert report.jobs >= 2
    # Some of it was refused, some was not even wrong.
    assert {"OK", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND"} <= set(report.statuses)
    assert max(report.server_mib, report.shard_mib) < MAX_MIB


def test_the_server_lives_through_garbage(tmp_path: Path) -> None:
    check(campaign.run(tmp_path, 1_500, seed=7), 1_500)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_the_server_lives_through_much_garbage(tmp_path: Path) -> None:
    check(campaign.run(tmp_path, 100_000), 100_000)
