"""The code of a job's author in a worker: refused without permission, and imported from where it was unpacked."""

import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.workers.archives import sha256_of, zipped
from tests.workers.test_archive import Payload
from thalweg.learning import entry_points, registry
from thalweg.learning.errors import MistakeError, NodeError
from thalweg.v1 import job_pb2
from thalweg.workers.code import importable, ready


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THALWEG_CODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    return tmp_path / "cache"


def spec_of(content: bytes, entrypoint: str = "nets_of_a_job:build") -> job_pb2.JobSpec:
    model = job_pb2.Model(torch=job_pb2.EntryPoint(entrypoint=entrypoint))
    return job_pb2.JobSpec(model=model, code=job_pb2.Code(path="nets.py", sha256=sha256_of(content)))


def uploaded(content: bytes, folder: Path) -> Callable[[str], Path]:
    def fetch(sha256: str) -> Path:
        (folder / "upload").write_bytes(content)
        return folder / "upload"

    return fetch


def never(sha256: str) -> Path:
    raise AssertionError("nothing is to be fetched")


def marking(mark: Path) -> bytes:
    """An archive whose module writes a file when it is imported."""
    return zipped({"nets_of_a_job.py": f"import pathlib\npathlib.Path({str(mark)!r}).touch()\ndef build(): return 3\n"})


def test_code_is_imported_from_the_archive_and_no_longer_afterwards(tmp_path: Path) -> None:
    content = marking(tmp_path / "mark")
    before = list(sys.path)
    with importable(spec_of(content), uploaded(content, tmp_path), allowed=True):
        # Nothing has run yet.
        assert not (tmp_path / "mark").exists()
        assert entry_points.load("nets_of_a_job:build", "model.torch.entrypoint")() == 3
        assert (tmp_path / "mark").exists()
        assert sys.path[1:] == before
        assert [path.name for path in Path(sys.path[0]).iterdir()] == ["nets_of_a_job.py"]
    assert sys.path == before
    assert "nets_of_a_job" not in sys.modules


def test_the_next_job_has_its_own_modules(tmp_path: Path) -> None:
    for width in (1, 2):
        content = zipped(
            {"nets_of_a_job.py": f"import parts_of_a_job.deep\ndef build(): return {width}\n", "parts_of_a_job/deep.py": ""}
        )
        with importable(spec_of(content), uploaded(content, tmp_path), allowed=True):
            assert entry_points.load("nets_of_a_job:build", "model.torch.entrypoint")() == width
    assert not [name for name in sys.modules if name.endswith("_of_a_job")]


def test_workers_of_one_process_share_it(tmp_path: Path) -> None:
    content = zipped({"nets_of_a_job.py": "def build(): return 3\n"})
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with importable(spec_of(content), uploaded(content, tmp_path), allowed=True):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    with importable(spec_of(content), uploaded(content, tmp_path), allowed=True):
        entry_points.load("nets_of_a_job:build", "model.torch.entrypoint")
    assert "nets_of_a_job" in sys.modules
    leave.set()
    thread.join()
    assert "nets_of_a_job" not in sys.modules


def test_without_permission_nothing_is_fetched_or_unpacked(tmp_path: Path, cache: Path) -> None:
    told = (
        "model.torch.entrypoint: nets_of_a_job:build is code, which workers of this fleet do not run; "
        "its operator can allow it: thalweg fleet --allow-code"
    )
    with pytest.raises(NodeError) as caught, importable(spec_of(marking(tmp_path / "mark")), never, allowed=False):
        pass
    assert str(caught.value) == told
    assert list(tmp_path.iterdir()) == []


def test_a_loss_is_code_too(tmp_path: Path) -> None:
    model = job_pb2.Model(layers=[job_pb2.Layer()], loss="os:system")
    with (
        pytest.raises(NodeError, match=r"model\.loss: os:system is code"),
        importable(job_pb2.JobSpec(model=model), never, allowed=False),
    ):
        pass


def test_installed_packages_need_permission_and_no_archive() -> None:
    spec = job_pb2.JobSpec(model=job_pb2.Model(jax=job_pb2.EntryPoint(entrypoint="os:system")))
    with pytest.raises(NodeError), importable(spec, never, allowed=False):
        pass
    with importable(spec, never, allowed=True):
        pass


def test_a_job_without_entry_points_needs_no_permission(tmp_path: Path) -> None:
    spec = job_pb2.JobSpec(code=job_pb2.Code(path="nets.py", sha256="0" * 64))
    before = list(sys.path)
    with importable(spec, never, allowed=False):
        assert sys.path == before


@pytest.mark.parametrize("place", ["pickle", "another SHA-256", "link", "above"])
def test_where_an_archive_is_refused_nothing_runs(tmp_path: Path, cache: Path, place: str) -> None:
    mark = tmp_path / "mark"
    content = spec_content = marking(mark)
    if place == "pickle":
        content = spec_content = pickle.dumps(Payload(mark))
    elif place == "another SHA-256":
        spec_content = zipped({"nets_of_a_job.py": ""})
    elif place == "link":
        content = spec_content = zipped({"nets_of_a_job.py": "/etc/passwd"}, external_attr=0o120777 << 16)
    else:
        content = spec_content = zipped({"../mark": b"evil"})
    with pytest.raises(MistakeError), importable(spec_of(spec_content), uploaded(content, tmp_path), allowed=True):
        pass
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} <= {"upload", "cache"}


def test_bytecode_is_not_written_into_the_cache(tmp_path: Path, cache: Path) -> None:
    content = zipped({"nets_of_a_job.py": "def build(): return 3\n"})
    with importable(spec_of(content), uploaded(content, tmp_path), allowed=True):
        entry_points.load("nets_of_a_job:build", "model.torch.entrypoint")
    assert [path.name for path in cache.rglob("*")] == [sha256_of(content), "nets_of_a_job.py"]


def test_the_library_of_a_model_is_imported_before_modules_of_its_names_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []

    @contextmanager
    def settings(_: int) -> Iterator[None]:
        paths.append(sys.path[0])
        yield

    monkeypatch.setitem(registry.KINDS, "torch", registry.KINDS["torch"]._replace(settings=settings))
    content = zipped({"torch.py": "", "nets_of_a_job.py": ""})
    before = sys.path[0]
    with ready(spec_of(content), uploaded(content, tmp_path), allowed=True):
        assert paths == [before] != [sys.path[0]]
    with pytest.raises(NodeError), ready(spec_of(content), never, allowed=False):
        pass
    assert len(paths) == 1
