"""What entry points set for their whole process."""

import os
import tempfile
from pathlib import Path

import pytest

from thalweg.contract import process


def none() -> str:
    """Where no folder can be written."""
    raise FileNotFoundError


def test_where_only_memory_can_be_written_temporary_files_lie_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/somewhere")
    monkeypatch.setattr(process, "_IN_MEMORY", str(tmp_path))
    process.find_temporary_folder()
    assert os.environ["TMPDIR"] == "/somewhere"
    monkeypatch.setattr(tempfile, "gettempdir", none)
    process.find_temporary_folder()
    assert os.environ["TMPDIR"] == str(tmp_path)


def test_where_nothing_can_be_written_nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/somewhere")
    monkeypatch.setattr(process, "_IN_MEMORY", str(tmp_path / "nothing"))
    monkeypatch.setattr(tempfile, "gettempdir", none)
    process.find_temporary_folder()
    assert os.environ["TMPDIR"] == "/somewhere"
