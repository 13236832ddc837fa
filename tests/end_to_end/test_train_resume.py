"""`thalweg train --resume`: a run on this machine whose process was killed continues, and ends as if nothing had happened."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.barrier import Barrier
from tests.end_to_end.command import Running, thalweg, wait_for
from tests.end_to_end.watching import undisturbed

pytestmark = pytest.mark.ray

EPOCHS = 12
# In the third epoch.
MIDST = 60


def _steps(home: Path) -> int:
    """The steps of the only job of this home, as another process sees it."""
    ended = thalweg(home, "jobs", "--json")
    return int(ended.answer["jobs"][0]["steps"]) if ended.code == 0 and ended.answer["jobs"] else 0


def _kill(running: Running) -> None:
    """Kills a run and all its processes, as when the machine fails."""
    processes = [running.process.pid, *(child.pid for child in psutil.Process(running.process.pid).children(recursive=True))]
    for pid in processes:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    running.end()
    # No process is left that could remove Ray's files: the next start does that.
    wait_for(lambda: not running.processes())


def test_a_run_that_was_killed_goes_on_to_the_same_end(tmp_path: Path) -> None:
    home, barrier = tmp_path / "killed", Barrier(tmp_path / "barrier.json")
    barrier.hold(MIDST)
    running = Running(home, "train", "digits", "--set", f"training.epochs={EPOCHS}", **barrier.environment)
    running.until("2 workers")
    wait_for(lambda: _steps(home) > 0)
    _kill(running)
    (job,) = thalweg(home, "jobs", "--json").answer["jobs"]
    assert (job["state"], job["error"]) == ("FAILED", "interrupted: the process that ran this job ended before the job did")
    resumed = thalweg(home, "train", "--resume", "digits-1", "--json")
    assert resumed.code == 0, resumed.stderr
    assert resumed.answer["state"] == "SUCCEEDED"
    assert resumed.answer["weights_sha256"] == undisturbed("digits", f"training.epochs={EPOCHS}")
    assert resumed.answer["steps"] == EPOCHS * 23
    again = thalweg(home, "train", "--resume", "digits-1")
    assert again.code == 1
    assert again.stderr.startswith("thalweg: job digits-1 cannot be resumed: ")


@pytest.mark.nightly
def test_a_run_that_was_interrupted_says_how_it_goes_on(tmp_path: Path) -> None:
    barrier = Barrier(tmp_path / "barrier.json")
    barrier.hold(MIDST)
    settings = ("--data", "kept here", "--set", f"training.epochs={EPOCHS}")
    running = Running(tmp_path, "train", "digits", *settings, **barrier.environment)
    running.until("epoch ")
    running.interrupt()
    ended = running.end()
    assert ended.code == 130, ended.stderr
    assert running.left_behind() == []
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("thalweg: to resume: ")]
    assert line == "thalweg: to resume: thalweg train --resume digits-1 --data 'kept here'"
    resumed = thalweg(tmp_path, "train", "--resume", "digits-1", "--data", "kept here")
    assert resumed.code == 0, resumed.stderr
    assert f"digits-1 succeeded: {EPOCHS} epochs" in resumed.stdout
