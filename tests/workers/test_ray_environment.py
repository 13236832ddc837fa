"""The environment in which Ray is driven."""

from pathlib import Path

import pytest

from thalweg.workers.ray.environment import for_cluster, for_own_ray, has_token

FOLDER = Path("/folder")


def test_a_ray_of_its_own_has_a_new_token_and_listens_on_loopback() -> None:
    given = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_AUTH_TOKEN": "mine",
        "RAY_AUTH_TOKEN_PATH": "/mine",
        "RAY_ADDRESS": "host:1",
        "RAY_TMPDIR": "/elsewhere",
        "THALWEG_TOKEN": "the fleet's",
        "A": "b",
    }
    first, second = for_own_ray(FOLDER, given), for_own_ray(FOLDER, given)
    assert first["RAY_AUTH_MODE"] == "token"
    assert len({"mine", first["RAY_AUTH_TOKEN"], second["RAY_AUTH_TOKEN"]}) == 3
    assert first["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert first["RAY_TMPDIR"] == str(FOLDER)
    assert first["A"] == "b"
    assert not first.keys() & {"RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "THALWEG_TOKEN"}
    assert "THALWEG_TOKEN" not in for_cluster(None, environment=given)


def test_a_clusters_token_is_that_of_the_file_or_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "mine"}
    assert for_cluster(None, environment=given).items() >= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "mine"}.items()
    of_file = for_cluster(Path("token"), environment=given)
    assert of_file["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    assert "RAY_AUTH_TOKEN" not in of_file
    relative = for_cluster(None, environment={"RAY_AUTH_TOKEN_PATH": "token"})
    assert relative["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    assert for_cluster(None, trust_network=True, environment=given)["RAY_AUTH_TOKEN"] == "mine"


def test_where_ray_looks_for_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not has_token({})
    assert "RAY_AUTH_TOKEN" not in for_cluster(None, environment={})
    assert for_cluster(None, trust_network=True, environment={})["RAY_AUTH_TOKEN"]
    assert has_token({"RAY_AUTH_TOKEN": "mine"})
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("mine")
    assert has_token({})


def test_entries_of_pythonpath_mean_the_same_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert for_own_ray(FOLDER, {"PYTHONPATH": "/a::b:"})["PYTHONPATH"] == f"/a:{tmp_path / 'b'}"
    assert "PYTHONPATH" not in for_own_ray(FOLDER, {"PYTHONPATH": ":"})


def test_ray_keeps_the_docstrings_that_it_needs() -> None:
    given = {"PYTHONOPTIMIZE": "2", "RAY_AUTH_TOKEN": "mine"}
    assert not {"PYTHONOPTIMIZE"} & (for_own_ray(FOLDER, given).keys() | for_cluster(None, environment=given).keys())


def test_workers_keep_the_memory_that_they_free_unless_told_otherwise() -> None:
    assert for_own_ray(FOLDER, {})["MALLOC_MMAP_MAX_"] == "0"
    given = {"MALLOC_ARENA_MAX": "4"}
    assert {name for name in for_own_ray(FOLDER, given) if name.startswith(("MALLOC", "GLIBC"))} == {"MALLOC_ARENA_MAX"}
