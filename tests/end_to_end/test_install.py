"""The base install: a client that is small, and that says which extra a command needs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.cluster import running_server
from tests.end_to_end.command import thalweg

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.install


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment without extras."""
    folder = tmp_path_factory.mktemp("base")
    source = shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(".*", "node_modules"))
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    programs = folder / "venv" / "bin"
    subprocess.run([programs / "pip", "install", "-q", "-c", source / "constraints.txt", source], check=True, capture_output=True)
    return programs


def test_it_is_small(base: Path) -> None:
    listed = subprocess.run([base / "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True).stdout
    names = {line.partition("==")[0].lower() for line in listed.splitlines()}
    assert {"thalweg", "numpy", "grpcio", "protobuf", "safetensors", "typer", "rich"} <= names
    assert not names & {"ray", "torch", "scipy", "matplotlib", "grpcio-health-checking", "grpcio-reflection", "threadpoolctl"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("train", "digits"), "Ray is not installed: pip install 'thalweg[workers]'"),
        (("fleet",), "Ray is not installed: pip install 'thalweg[workers]'"),
        (("serve",), "the server is not installed (grpc_health is missing): pip install 'thalweg[server]'"),
    ],
)
def test_what_is_missing_is_told(base: Path, arguments: tuple[str, ...], problem: str, tmp_path: Path) -> None:
    ended = thalweg(tmp_path, *arguments, program=base / "thalweg")
    assert ended.code == 1
    assert ended.stderr == f"thalweg: {problem}\n"
    assert ended.stdout == ""


def test_it_submits_jobs_and_gets_help(base: Path, tmp_path: Path) -> None:
    assert "submit" in thalweg(tmp_path, "--help", program=base / "thalweg").stdout
    with running_server(tmp_path / "server") as server:
        place = ("--server", str(server.address), "--json")
        submitted = thalweg(tmp_path, "submit", "digits", *place, program=base / "thalweg")
        assert submitted.code == 0, submitted.stderr
        cancelled = thalweg(tmp_path, "cancel", submitted.answer["job"], *place, program=base / "thalweg")
        assert cancelled.answer["state"] == "CANCELLED"
        plotted = thalweg(tmp_path, "plot", submitted.answer["job"], *place, program=base / "thalweg")
        assert plotted.code == 1
        assert plotted.stderr == "thalweg: matplotlib is not installed (matplotlib is missing): pip install 'thalweg[plot]'\n"
