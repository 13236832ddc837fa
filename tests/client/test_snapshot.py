"""Data folders in which nothing can be written: finished jobs can be looked at, predicted from and plotted."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.client.conftest import Command
from tests.client.helpers import fleet_of_threads
from tests.end_to_end.barrier import Barrier
from tests.end_to_end.command import THALWEG
from thalweg.client import EpochEnded, LocalError
from thalweg.client.embedded import Embedded
from thalweg.client.folder_server import attached
from thalweg.client.folders import folder_token
from thalweg.client.snapshot import is_read_only


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a job that succeeded, and one whose process was killed when it had a checkpoint or none."""
    folder = tmp_path_factory.mktemp("kept") / "jobs"
    embedded = Embedded(folder)
    barrier = Barrier(tmp_path_factory.mktemp("barrier") / "barrier.json")
    barrier.hold(3, "cut-off")
    with barrier.here(), fleet_of_threads(embedded.client, folder_token(folder)):
        embedded.client.submit("xor", {"training.epochs": 20}, id="done").wait()
        cut_off = embedded.client.submit("xor", id="cut-off")
        next(event for event in cut_off.watch() if isinstance(event, EpochEnded))
        embedded.abandon("cut-off")
        embedded.close()
    yield folder
    shutil.rmtree(folder)


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Holds that nothing in a folder changes."""

    def state() -> dict[Path, tuple[int, int]]:
        found = {path: path.stat() for path in sorted(folder.rglob("*"))}
        return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in found.items()}

    before = state()
    yield
    assert state() == before


@pytest.fixture
def read_only(kept: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, which everything takes for read-only."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and not Path(path).is_relative_to(kept))
    return kept


def test_a_folder_that_can_be_written_or_is_not_there_is_not_read_only(kept: Path, tmp_path: Path) -> None:
    assert not is_read_only(kept)
    assert not is_read_only(tmp_path / "nowhere")


def test_finished_jobs_are_looked_at(read_only: Path, command: Command) -> None:
    place = ("--data", str(read_only))
    with unchanged(read_only):
        jobs = {job["job"]: job for job in command("jobs", *place, "--json").json["jobs"]}
        assert jobs["done"]["state"] == "SUCCEEDED"
        assert jobs["cut-off"]["error"] == "interrupted: the process that ran this job ended before the job did"
        assert command("weights", "done", *place).code == 0
        assert command("plot", "done", *place).code == 0
        assert command("plot", "done", "--slice", "0.bias[0]", *place).code == 0
        assert command("watch", "done", *place, "--json").code == 0
        np.save("x.npy", np.eye(2))
        assert command("predict", "done", "x.npy", *place).code == 0


@pytest.mark.parametrize("arguments", [["delete", "done"], ["cancel", "done"], ["scale", "done", "2"]])
def test_what_would_change_something_is_refused(arguments: list[str], read_only: Path, command: Command) -> None:
    with unchanged(read_only):
        printed = command(*arguments, "--data", str(read_only))
    assert printed.code == 1
    assert printed.err == f"thalweg: the data folder {read_only} is read-only: its jobs can be listed but not changed\n"


def test_a_folder_that_cannot_be_read_is_told(read_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "copyfile", refuse)
    with pytest.raises(LocalError, match=r"cannot read the data folder .*: Permission denied"), attached(read_only):
        pass


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts need root")
def test_a_read_only_file_system_can_be_looked_at(kept: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        mount = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 77; shift; exec "$@"'
        command = ["unshare", "-m", "sh", "-c", mount, "sh", str(kept), str(THALWEG), *arguments, "--data", str(kept)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode == 77:
            pytest.skip("mounts are not allowed here")
        return ended

    with unchanged(kept):
        looked = run("jobs", "done", "--json")
        assert looked.returncode == 0, looked.stderr
        assert '"SUCCEEDED"' in looked.stdout
        trained = run("train", "xor")
    assert trained.returncode == 1
    assert trained.stderr == f"thalweg: cannot use the data folder {kept}: Read-only file system; choose another with --data\n"
