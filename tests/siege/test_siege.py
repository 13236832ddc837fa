"""Peers that take up what a server has: a job that is trained meanwhile has its digest, and others are let in."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.end_to_end.command import wait_for
from tests.siege.fortress import Siege, fortress, steps_of

# Each of them, fewer than in `python -m tests.siege`.
SIEGES = (
    Siege("connections", 300, False),
    Siege("readers", 20, True),
    Siege("uploads", 50, True),
    Siege("silent", 50, True),
    Siege("refused", 50, False),
)
# A server has about 110 MiB to begin with.
MAX_MIB = 300
EPOCHS = 60


@pytest.mark.nightly
def test_a_job_ends_as_ever_while_the_server_is_besieged(tmp_path: Path) -> None:
    with fortress(tmp_path) as server, ExitStack() as stack:
        with server.training(EPOCHS) as undisturbed:
            expected = undisturbed.wait().weights_sha256
        job = stack.enter_context(server.training(EPOCHS))
        # Streams that read nothing of a job that has ended, with all its events, and of one that goes on.
        for siege, watched in zip(SIEGES, (undisturbed, undisturbed, job, job, job), strict=True):
            stack.enter_context(server.besieged(siege, watched.id))
        with server.client() as another:
            assert {each.id for each in another.jobs()} == {undisturbed.id, job.id}
        assert job.wait().weights_sha256 == expected
        wait_for(lambda: steps_of(job) == steps_of(undisturbed))
        assert server.mib < MAX_MIB
        assert "Traceback" not in server.running.stderr
