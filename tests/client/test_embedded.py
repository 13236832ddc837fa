"""Embedded runs, and the folders that they share. None of it starts Ray."""

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.client.conftest import Command
from tests.client.helpers import fleet_of_threads, names_in
from thalweg.client import Client, JobFailedError, LocalError, ThalwegError, folder_server, folders, load_job, local, models
from thalweg.client import embedded as embedded_module
from thalweg.client.composition import start_server
from thalweg.client.embedded import Embedded
from thalweg.client.folder_server import attached
from thalweg.client.folders import embedded_folder, folder_token, running_server, served_folder
from thalweg.contract.endpoint import Address

LOOPBACK = Address("127.0.0.1", 0)


def test_folders_are_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert embedded_folder() == tmp_path / "home" / "data" / "thalweg" / "embedded"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert served_folder() == tmp_path / "home" / ".local" / "share" / "thalweg" / "server"


def test_a_relative_home_of_data_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "data")
    assert embedded_folder() == tmp_path / "home" / ".local" / "share" / "thalweg" / "embedded"


def test_without_the_older_loopback_servers_listen_at_the_newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    monkeypatch.setattr(folder_server, "_LOOPBACKS", ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "::1")))
    embedded = Embedded(tmp_path)
    assert embedded.client.address.host == "::1"
    embedded.close()
    monkeypatch.setattr(folder_server, "_LOOPBACKS", ((socket.AF_INET, "192.0.2.1"),))
    with pytest.raises(LocalError, match=r"neither 127\.0\.0\.1 nor ::1"):
        Embedded(tmp_path)
    with pytest.raises(LocalError, match=r"neither 127\.0\.0\.1 nor ::1"), attached(tmp_path):
        pass


def test_a_user_without_a_home_is_told_what_to_do(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    problem = "thalweg: this user has no home folder; choose a folder with --data\n"
    assert command("train", "xor") == command("jobs") == (1, "", problem)
    embedded = Embedded(tmp_path / "a")
    assert embedded.place == f" --data {tmp_path / 'a'}"
    embedded.close()


def test_a_folders_token_is_made_once_and_is_this_users_alone(tmp_path: Path) -> None:
    token = folder_token(tmp_path / "a")
    assert len(token) >= 32
    assert folder_token(tmp_path / "a") == token
    assert folder_token(tmp_path / "b") != token
    assert (tmp_path / "a" / "token").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert names_in(tmp_path / "a") == ["token"]


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalError, match=r"cannot use the data folder .*file/below: Not a directory"):
        folder_token(tmp_path / "file" / "below")


def test_a_running_server_is_found_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start_server(LOOPBACK, tmp_path / "a", None)
    try:
        assert running_server(tmp_path / "a") == server.address
    finally:
        server.stop()
    monkeypatch.setattr(folders, "_START_SECONDS", 0.1)
    with pytest.raises(LocalError, match=r"a server uses the folder .*, but its address is not known"):
        running_server(tmp_path / "a")


def test_an_embedded_server_is_its_users_alone() -> None:
    embedded = Embedded(embedded_folder())
    try:
        assert embedded.client.jobs() == []
        with Client(embedded.client.address) as stranger, pytest.raises(ThalwegError, match="requires a token"):
            stranger.jobs()
    finally:
        embedded.close()


def test_a_folder_is_attached_to_whoever_runs_on_it(tmp_path: Path) -> None:
    embedded = Embedded(tmp_path / "a")
    embedded.client.submit("xor", id="mine")
    with attached(tmp_path / "a") as client:
        assert client.address == embedded.client.address
        assert client.job("mine").state == "QUEUED"
    embedded.close()
    server = start_server(LOOPBACK, tmp_path / "a", "secret")
    try:
        with attached(tmp_path / "a", "secret") as client:
            assert client.address == server.address
            assert client.job("mine").id == "mine"
    finally:
        server.stop()
    with pytest.raises(ThalwegError, match="--data: there is no folder nowhere"), attached(Path("nowhere")):
        pass


def test_a_look_into_a_servers_folder_interrupts_none_of_its_jobs(tmp_path: Path, command: Command) -> None:
    server = start_server(LOOPBACK, tmp_path / "a", None)
    with Client(server.address) as client:
        client.submit("xor", id="mine")
        assert command("jobs", "mine", "--data", "a", "--json").json["jobs"][0]["state"] == "QUEUED"
    server.stop()
    for _ in range(2):
        assert command("jobs", "mine", "--data", "a", "--json").json["jobs"][0]["state"] == "QUEUED"
    assert "token" not in names_in(tmp_path / "a")


def test_jobs_outlive_their_server(tmp_path: Path) -> None:
    server = start_server(LOOPBACK, tmp_path / "a", None)
    with fleet_of_threads(server), Client(server.address) as client:
        result = client.submit("xor", {"training.epochs": 2}, id="mine").wait()
    server.stop()
    with attached(tmp_path / "a") as client:
        job = client.job("mine")
        assert job.result() == result
        assert job.slab()[0].sha256 == result.weights_sha256


def test_what_runs_on_this_machine_needs_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LocalError, match=r"Ray is not installed: pip install 'thalweg\[workers\]'"), local():
        pass
    assert not embedded_folder().exists()


def wrong(**arrays: Any) -> list[str]:
    """Settings of a job that learns from arrays in which something is wrong."""
    np.savez("data.npz", **{"x": np.ones((8, 2)), "y": np.arange(8) % 2} | arrays)
    return ["--set", "data.npz=data.npz"]


WRONG: dict[str, tuple[Callable[[], list[str]], str]] = {
    "NaN in the data": (lambda: wrong(x=np.full((8, 2), np.nan)), "data.npz: "),
    "text in place of numbers": (lambda: wrong(x=np.array("text")), "data.npz: "),
    "labels out of range": (lambda: wrong(y=np.full(8, 12)), "model.loss: binary_cross_entropy needs targets from 0 to 1"),
    "a model that does not fit": (lambda: ["--set", "model.layers=[{dense={units=3}}]"], "model.layers: the model's output has"),
    "a model for another machine": (
        lambda: ["--set", "model.layers=[{dense={units=1000000}}, {dense={units=1000000}}, {dense={units=1}}]"],
        "model.layers: a worker for 1,000,005,000,001 parameters needs",
    ),
    "a group without tensors": (
        lambda: ["--set", "optimizer.groups=[{pattern='*.bias', weight_decay=0}, {pattern='9.*', frozen=true}]"],
        "optimizer.groups[1].pattern: '9.*' matches none of the model's tensors, which are ",
    ),
    "parameters of another model": (lambda: ["--set", "model.initial.file=other.safetensors"], "model.initial.file: the model's"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_can_be_found_wrong_on_this_machine_is_found_before_ray_starts(
    case: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_fleet(*_: object) -> None:
        raise AssertionError("Ray would have been started")

    monkeypatch.setattr(Embedded, "start_fleet", start_fleet)
    save_file({"0.weight": np.ones((3, 3), np.float32)}, "other.safetensors")
    make, message = WRONG[case]
    printed = command("train", "xor", *make())
    assert printed.code == 2, printed.err
    assert printed.out == ""
    assert printed.err.startswith(f"thalweg: {message}")
    assert command("jobs", "--json").json == {"jobs": []}


def test_data_that_takes_long_to_read_is_left_to_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(x=np.full((8, 2), np.nan))
    monkeypatch.setattr(models, "_MAX_CHECKED_BYTES", 8)
    models.check(load_job("xor", {"data.npz": "data.npz"}))
    # Nor is there a file to read of data that only the server has.
    models.check(load_job("xor", {"data.npz": "nowhere.npz", "data.sha256": "0" * 64}))


@contextmanager
def training(folder: Path) -> Iterator[Client]:
    """A client of an embedded server whose workers are threads, and which copies no file."""
    embedded = Embedded(folder)
    try:
        with fleet_of_threads(embedded.client, folder_token(folder)):
            yield embedded.client
    finally:
        embedded.close()


@pytest.fixture
def no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_module, "_MAX_COPIED_BYTES", 8)


SETTINGS = {"data.npz": "data.npz", "training.epochs": 2}


def test_a_large_file_is_used_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong()  # There is nothing wrong with it.
    content = Path("data.npz").read_bytes()
    uploads = tmp_path / "a" / "uploads"
    with training(tmp_path / "a") as client:
        copied = client.submit("xor", SETTINGS, id="copied").wait()
        (upload,) = uploads.iterdir()
        assert not upload.is_symlink()
        client.job("copied").delete()
        monkeypatch.setattr(embedded_module, "_MAX_COPIED_BYTES", 8)
        referred = client.submit("xor", SETTINGS, id="referred").wait()
        assert referred.weights_sha256 == copied.weights_sha256
        assert upload.readlink() == tmp_path / "data.npz"
        again = client.submit("xor", SETTINGS)
        assert again.wait().weights_sha256 == copied.weights_sha256
        for job in client.jobs():
            job.delete()
        assert names_in(uploads) == []
    assert Path("data.npz").read_bytes() == content


def test_a_large_file_that_changed_fails_the_job(tmp_path: Path, no_copies: None) -> None:
    wrong()
    embedded = Embedded(tmp_path / "a")
    try:
        job = embedded.client.submit("xor", SETTINGS)
        wrong(y=np.arange(8) % 2 == 0)
        with fleet_of_threads(embedded.client, folder_token(tmp_path / "a")):
            with pytest.raises(JobFailedError, match=r"data\.npz has changed since the job was submitted"):
                job.wait()
            # What is in it now can be learnt from.
            assert embedded.client.submit("xor", SETTINGS).wait().state == "SUCCEEDED"
    finally:
        embedded.close()


def test_a_large_file_that_was_moved_is_found_when_it_is_submitted_again(tmp_path: Path, no_copies: None) -> None:
    wrong()
    with training(tmp_path / "a") as client:
        first = client.submit("xor", SETTINGS).wait()
    Path("data.npz").rename("moved.npz")
    for path in (tmp_path / "a" / "uploads").iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    with training(tmp_path / "a") as client:
        with pytest.raises(ThalwegError, match=r"its file was moved or removed"):
            client.submit("xor", SETTINGS | {"data.sha256": first_upload(tmp_path / "a")})
        second = client.submit("xor", SETTINGS | {"data.npz": "moved.npz"}).wait()
    assert second.weights_sha256 == first.weights_sha256


def first_upload(folder: Path) -> str:
    return next((folder / "uploads").iterdir()).name


def test_a_large_file_that_cannot_be_read_is_told(tmp_path: Path, no_copies: None) -> None:
    wrong()
    with training(tmp_path / "a") as client:
        shutil.rmtree(tmp_path / "a" / "uploads")
        with pytest.raises(LocalError, match=r"cannot use .*data.npz from .*uploads: No such file or directory"):
            client.submit("xor", SETTINGS)
        (tmp_path / "a" / "uploads").mkdir()


def test_large_arrays_are_moved_and_not_copied(tmp_path: Path, no_copies: None) -> None:
    with training(tmp_path / "a") as client:
        job = client.submit("xor", {"training.epochs": 2}, data=(np.eye(2), [0, 1]))
        (upload,) = (tmp_path / "a" / "uploads").iterdir()
        assert not upload.is_symlink()
        digest = job.wait().weights_sha256
        job.delete()
        reported: list[tuple[int, int]] = []
        job = client.submit(
            "xor",
            {"training.epochs": 2},
            data=iter([(np.eye(2), [0, 1])]),
            progress=lambda done, total: reported.append((done, total)),
        )
        uploads = list((tmp_path / "a" / "uploads").iterdir())
        # The arrays and their manifest.
        assert len(uploads) == 3
        assert not any(upload.is_symlink() for upload in uploads)
        assert job.wait().weights_sha256 == digest
        total = reported[0][1]
        assert reported[-1] == (total, total)
