"""`thalweg backup` and `thalweg restore` as their users see them."""

import shutil
from pathlib import Path

import pytest

from tests.client.conftest import Command
from tests.end_to_end.faults import flip_a_byte
from tests.server.test_upgrade import FOLDERS, unpacked
from thalweg.contract import backups


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return unpacked(FOLDERS[-1], tmp_path)


def test_a_data_folder_is_backed_up_checked_and_restored(data: Path, tmp_path: Path, command: Command) -> None:
    backup, restored = tmp_path / "monday", tmp_path / "restored"
    made = command("backup", backup, "--data", data)
    assert (made.code, made.err) == (0, "")
    assert made.out.startswith(f"{backup}: 10 jobs, ")
    told = command("restore", backup, "--check", "--json").json
    assert (told["jobs"], told["folder"], told["bytes"]) == (10, None, backups.read((backup / "backup.json").read_bytes()).size)
    assert f"thalweg serve --data {restored}" in command("restore", backup, restored).out
    jobs = {job["job"] for job in command("jobs", "--data", restored, "--json").json["jobs"]}
    assert len(jobs) == 10
    # The jobs of a backup can be looked at, which changes nothing of it.
    assert {job["job"] for job in command("jobs", "--data", backup, "--json").json["jobs"]} == jobs
    assert command("restore", backup, "--check").code == 0
    refused = command("delete", "undisturbed", "--yes", "--data", backup)
    assert refused.code == 1
    assert "can be listed but not changed" in refused.err


def test_mistakes_are_lines(data: Path, tmp_path: Path, command: Command) -> None:
    backup = tmp_path / "monday"
    again = command("backup", data, "--data", data)
    assert (again.code, again.out) == (1, "")
    assert "exists already" in again.err
    assert command("backup", backup, "--data", tmp_path / "nowhere").err.startswith("thalweg: ")
    assert command("restore", backup).code == 2
    assert command("restore", backup, tmp_path / "a", "--check").code == 2
    assert "is not a backup" in command("restore", backup, "--check").err
    shutil.rmtree(data / "jobs" / "running")
    flip_a_byte(next(path for path in (data / "uploads").iterdir() if path.stat().st_size > 200))
    made = command("backup", backup, "--data", data, "--json")
    assert made.code == 1
    assert "is damaged" in made.err
    assert len(made.json["problems"]) == 1
    flip_a_byte(backup / "jobs.sqlite")
    assert "thalweg: jobs.sqlite was changed" in command("restore", backup, "--check").err
