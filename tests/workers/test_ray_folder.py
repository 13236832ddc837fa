"""Where a Ray of the fleet's own keeps its files: a place in which it works, and nothing left of it afterwards."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.command import wait_for
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.workers.ray import folder as ray_folder
from thalweg.workers.ray.config import FleetConfig
from thalweg.workers.ray.fleet import Fleet, FleetError
from thalweg.workers.ray.folder import RayFolder, RayFolderError

# Makes a folder in a given one, prints which, and waits to be killed.
HOLDER = (
    "import sys; from thalweg.workers.ray.folder import RayFolder\n"
    "folder = RayFolder.make({'TMPDIR': sys.argv[1]}); print(folder.path, flush=True); sys.stdin.read()"
)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short path."""
    path = Path(tempfile.mkdtemp(prefix="t"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def fallback(monkeypatch: pytest.MonkeyPatch, place: Path) -> Path:
    """The only place that is looked at besides those that the environment names."""
    path = place / "f"
    path.mkdir()
    monkeypatch.setattr(ray_folder, "_PLACES", (str(path),))
    return path


def test_a_folder_is_private_and_goes_with_all_that_is_in_it(place: Path) -> None:
    folder = RayFolder.make({"TMPDIR": str(place)})
    assert folder.path.parent == place
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    (folder.path / "ray" / "logs").mkdir(parents=True)
    (folder.path / "ray" / "logs" / "raylet.out").write_text("words")
    folder.remove()
    assert list(place.iterdir()) == []


def test_rays_sockets_fit(place: Path) -> None:
    folder = RayFolder.make({"TMPDIR": str(place)})
    path = folder.path / "ray" / "session_2026-11-27_17-02-20_421558_4194304" / "sockets" / "plasma_store.10"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    folder.remove()


def unfit(place: Path) -> dict[str, str]:
    """Places where Ray does not work."""
    names = {"long": "l" * 90, "spaces": "a b", "letters": "日本", "nothing": "nothing", "a file": "file"}
    paths = {case: place / name for case, name in names.items()}
    for case in ("long", "spaces", "letters"):
        paths[case].mkdir()
    paths["a file"].touch()
    return {case: str(path) for case, path in paths.items()} | {"relative": "tmp"}


@pytest.mark.parametrize("case", ["long", "spaces", "letters", "nothing", "a file", "relative"])
def test_where_ray_would_not_work_another_place_is_taken(case: str, place: Path, fallback: Path) -> None:
    given = unfit(place)[case]
    before = sorted(place.rglob("*"))
    folder = RayFolder.make({"TMPDIR": given})
    assert folder.path.parent == fallback
    folder.remove()
    assert sorted(place.rglob("*")) == before


def test_a_place_without_room_is_passed_over(place: Path, fallback: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage

    def full(path: Path) -> object:
        return usage(path) if fallback in path.parents else usage(path)._replace(free=0)

    monkeypatch.setattr(shutil, "disk_usage", full)
    folder = RayFolder.make({"TMPDIR": str(place)})
    assert folder.path.parent == fallback
    folder.remove()


def test_what_ray_is_told_to_use_comes_first(place: Path, fallback: Path) -> None:
    folder = RayFolder.make({"RAY_TMPDIR": str(place), "TMPDIR": str(fallback)})
    assert folder.path.parent == place
    folder.remove()


def test_where_no_place_will_do_each_is_named(place: Path, fallback: Path) -> None:
    fallback.rmdir()
    with pytest.raises(RayFolderError) as caught:
        RayFolder.make({"TMPDIR": unfit(place)["long"]})
    assert f"{'l' * 90} (AF_UNIX path too long), {fallback} (No such file or directory)" in str(caught.value)
    assert "set RAY_TMPDIR" in str(caught.value)


def test_the_next_start_removes_what_a_killed_run_left_and_nothing_else(place: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    theirs = Path(holder.stdout.readline().strip())
    others = place / "others"
    shutil.copytree(theirs, others)
    (place / "thalweg-link").symlink_to(others)
    (place / "thalweg-file").touch()
    (place / "thalweg-project").mkdir()
    kept = {others.name, "thalweg-link", "thalweg-file", "thalweg-project"}

    RayFolder.make({"TMPDIR": str(place)}).remove()
    assert {path.name for path in place.iterdir()} == kept | {theirs.name}
    with holder:
        holder.kill()
    RayFolder.make({"TMPDIR": str(place)}).remove()
    assert {path.name for path in place.iterdir()} == kept


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_another_users_folders_stay(place: Path) -> None:
    folder = RayFolder.make({"TMPDIR": str(place)})
    shutil.copytree(folder.path, place / "thalweg-theirs")
    folder.remove()
    os.chown(place / "thalweg-theirs", 1234, 1234)
    RayFolder.make({"TMPDIR": str(place)}).remove()
    assert [path.name for path in place.iterdir()] == ["thalweg-theirs"]


def test_a_group_that_ends_itself_has_its_folder_removed(place: Path) -> None:
    folder = RayFolder.make({"TMPDIR": str(place)})
    program = (
        "import subprocess, sys; from pathlib import Path; from thalweg.workers.ray.folder import end_and_remove\n"
        "subprocess.Popen([sys.executable, '-c', 'input()']); end_and_remove(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, str(folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.wait() == -signal.SIGKILL
    wait_for(lambda: not folder.path.exists())
    with pytest.raises(ProcessLookupError):
        os.killpg(leader.pid, 0)


def test_a_driver_that_cannot_be_started_is_said_and_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(FleetError, match=r"cannot start Ray: its driver, .*/nowhere/python, cannot be started: No such file"):
        Fleet(FleetConfig(Endpoint(Address("127.0.0.1", 1)))).start()
    assert list(place.iterdir()) == []
