"""Nothing that takes long with large files and arrays happens in the event loop's thread."""

import ast
import builtins
import hashlib
import io
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from tests.end_to_end.cluster import running_server, stub_of, train
from tests.server.specs import make_spec
from tests.syntax import calls
from thalweg.contract import layout as layouts
from thalweg.server.storage import initial
from thalweg.server.storage.checkpoints import Checkpoints
from thalweg.server.storage.folder import DataFolder
from thalweg.server.storage.job_files import JobFiles
from thalweg.server.storage.tables.database import Database
from thalweg.server.storage.tables.event_table import EventTable
from thalweg.server.storage.tables.job_table import JobTable
from thalweg.server.storage.uploads import UploadFiles
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub

# These make a path, and use none.
_QUICK = {"job_folder", "checkpoints", "path", "part", "in_place"}
# What the system makes up when it is read, and no disk is asked for.
_VIRTUAL = ("/proc/", "/sys/", "/dev/")
# What may be hashed in between: tokens.
_FEW_BYTES = 1 << 10


def _on_the_loop() -> bool:
    return threading.current_thread().name == "thalweg-server"


@pytest.fixture
def on_the_loop(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was called in the event loop's thread of all that reads, writes or hashes."""
    called: list[str] = []

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if _on_the_loop():
                called.append(name)
            return function(*args, **kwargs)

        return call

    def opened(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, *args: Any, **kwargs: Any) -> Any:
            if _on_the_loop() and not isinstance(file, int) and not str(file).startswith(_VIRTUAL):
                called.append(f"{name}({file})")
            return function(file, *args, **kwargs)

        return call

    def hashed(data: Any = b"", **kwargs: Any) -> Any:
        if _on_the_loop() and not 0 < len(data) <= _FEW_BYTES:
            called.append("sha256")
        return sha256(data, **kwargs)

    sha256 = hashlib.sha256
    for owner in (DataFolder, EventTable, JobTable, JobFiles, Database, UploadFiles, Checkpoints):
        for name, function in list(vars(owner).items()):
            if callable(function) and not name.startswith("_") and name not in _QUICK:
                monkeypatch.setattr(owner, name, watched(name, function))
    monkeypatch.setattr(layouts, "digest", watched("digest", layouts.digest))
    monkeypatch.setattr(hashlib, "file_digest", watched("file_digest", hashlib.file_digest))
    monkeypatch.setattr(hashlib, "sha256", hashed)
    monkeypatch.setattr(initial, "safe_open", watched("safe_open", safe_open))
    for module, name in ((io, "open"), (builtins, "open"), (os, "open")):
        monkeypatch.setattr(module, name, opened(name, getattr(module, name)))
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, opened(name, getattr(os, name)))
    for name in ("fsync", "mkdir", "rename", "replace", "unlink", "remove", "rmdir"):
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
    return called


def upload(stub: TrainingServiceStub, content: bytes) -> str:
    sha256 = hashlib.sha256(content).hexdigest()
    header = pb.UploadHeader(sha256=sha256, size=len(content))
    stub.UploadData(iter([pb.UploadDataRequest(header=header), pb.UploadDataRequest(data=content)]))
    return sha256


def downloaded(stub: TrainingServiceStub, job: str) -> bytes:
    return b"".join(part.data for part in stub.DownloadParameters(pb.DownloadParametersRequest(job_id=job)))


def test_files_are_read_written_and_hashed_beside_the_event_loop(tmp_path: Path, on_the_loop: list[str]) -> None:
    with running_server(tmp_path, checkpoint_seconds=0.0) as server, stub_of(server) as stub:
        # Nobody waits for a server that starts.
        on_the_loop.clear()
        tensors = {"0.weight": np.ones((1, 2), np.float32), "0.bias": np.zeros(1, np.float32)}
        spec = make_spec(epochs=3)
        spec.model.initial.file = "given.safetensors"
        spec.model.initial.sha256 = upload(stub, save(tensors))
        job = train(server, spec, workers=2)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
        content = downloaded(stub, job.id)
        assert hashlib.sha256(content).hexdigest() == job.result.weights_sha256
        assert list(stub.DownloadTrajectory(pb.DownloadTrajectoryRequest(job_id=job.id)))
        given = pb.DownloadDataRequest(sha256=spec.model.initial.sha256)
        assert b"".join(part.data for part in stub.DownloadData(given)) == save(tensors)
        spec.model.initial.job = job.id
        spec.model.initial.sha256 = ""
        second = train(server, spec)
        assert second.state == job_pb2.JOB_STATE_SUCCEEDED, second.error
        stub.DeleteJob(pb.DeleteJobRequest(job_id=job.id))
    assert set(on_the_loop) == set()


# What takes long with a large file or array, by how it is called.
_BLOCKING = re.compile(
    r"open|io\.open|shutil\.\w+|mmap\.mmap|sqlite3\.connect|subprocess\.\w+|tempfile\.\w+"
    r"|os\.(open|read|pread|write|pwrite|f?sync|fdatasync|f?truncate|replace|rename|remove|unlink|link|symlink|mkdir|makedirs|rmdir"
    r"|listdir|scandir|walk|l?stat|access|path\.(exists|isfile|isdir|getsize|getmtime|realpath))"
    r"|numpy\.(load|save|savez|savez_compressed|fromfile|memmap|loadtxt|genfromtxt)|.*\.tofile"
    r"|(safetensors\..*)?(safe_open|load_file|save_file)"
    r"|hashlib\.\w+|hmac\.(new|digest)|zlib\.(crc32|adler32)|(thalweg\.contract\.layout\.)?digest"
    r"|.*\.(read_bytes|read_text|write_bytes|write_text|unlink|mkdir|iterdir|glob|rglob|rmdir|touch|is_file|is_dir|lstat)"
)
# A path's methods that others have too: a path's take nothing, or a mode as it stands.
_OF_A_PATH = re.compile(r".*\.(open|exists|stat|rename|replace)")

_SERVER = Path(__file__).parents[2] / "server" / "thalweg" / "server"
# The modules of the server that may call it, and where that happens. All others have it done by these.
_ELSEWHERE = {
    # The folder `storage`: in the threads of `journal.py` or of the audit log, or while the server starts or has stopped.
    "storage/audit_file.py",
    "storage/bin.py",
    "storage/checkpoints.py",
    "storage/tables/database.py",
    "storage/disk.py",
    "storage/folder.py",
    # In a process of its own.
    "storage/backup/copying.py",
    "storage/backup/making.py",
    "storage/backup/restoring.py",
    # Also called by a client that checks a job.
    "storage/initial.py",
    "storage/job_files.py",
    "storage/privacy.py",
    "storage/reserve.py",
    "storage/uploads.py",
    # In the thread that starts and stops the server.
    "process.py",
    # A challenge of few bytes.
    "services/confirmation.py",
    # Tokens and names of few bytes.
    "access/tokens.py",
    "services/guarding/permits.py",
    # The open descriptors, of which the system tells.
    "services/guarding/doorkeeper.py",
    # A token of few bytes.
    "streams/memory_listener.py",
}


def blocking(tree: ast.AST) -> set[str]:
    """The calls in a module that may take long."""
    found = set()
    for call, what in calls(tree):
        plain = all(isinstance(argument, ast.Constant) for argument in call.args)
        if _BLOCKING.fullmatch(what) or (_OF_A_PATH.fullmatch(what) and plain):
            found.add(what)
    return found


def test_only_named_modules_read_write_or_hash() -> None:
    modules = {path.relative_to(_SERVER).as_posix(): ast.parse(path.read_text()) for path in _SERVER.rglob("*.py")}
    found = {path: called for path, tree in modules.items() if (called := blocking(tree))}
    assert found.keys() == _ELSEWHERE, found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("with path.open('rb') as file: pass", {"path.open"}),
        ("await journal.open(job_id)", set()),
        ("open(name)", {"open"}),
        ("hashlib.sha256(data)", {"hashlib.sha256"}),
        ("from hashlib import sha256 as h\n  h(data)", {"hashlib.sha256"}),
        ("from thalweg.contract import layout as layouts\n  layouts.digest(slab)", {"thalweg.contract.layout.digest"}),
        ("await asyncio.to_thread(layouts.digest, slab)", set()),
        ("import numpy as np\n  np.load(path)", {"numpy.load"}),
        ("from os import listdir\n  listdir(folder)", {"os.listdir"}),
        ("os.path.exists(path)", {"os.path.exists"}),
        ("zlib.crc32(data)", {"zlib.crc32"}),
        ("(folder / 'a').read_bytes()", {"(folder / 'a').read_bytes"}),
    ],
)
def test_what_may_take_long_is_found(text: str, found: set[str]) -> None:
    assert blocking(ast.parse(f"async def f():\n  {text}")) == found


def test_what_is_opened_on_the_loop_is_found(tmp_path: Path, on_the_loop: list[str]) -> None:
    """And so the test of what is not says something."""

    def read() -> None:
        (tmp_path / "a").write_text("a")
        hashlib.sha256(bytes(_FEW_BYTES + 1))
        hashlib.sha256(b"token")
        Path("/proc/self/status").read_bytes()

    thread = threading.Thread(target=read, name="thalweg-server")
    thread.start()
    thread.join()
    read()
    assert on_the_loop == [f"open({tmp_path}/a)", "sha256"]
