"""Code of jobs on a server and a fleet with Ray, as processes: what was submitted is what runs, and each job has its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.end_to_end.command import service, wait_for
from tests.end_to_end.faults import kill
from tests.end_to_end.loops import CASES, MIXED, ROOT, check, entry_of, settled
from tests.end_to_end.reference import reference
from tests.end_to_end.test_cluster import Cluster
from tests.workers.archives import wheel
from thalweg.client import Client, Job, Notice, StateChanged, WorkersChanged, load_job
from thalweg.contract import layout as layouts
from thalweg.contract.states import waiting_name
from thalweg.server import validation
from thalweg.v1 import job_pb2

pytestmark = pytest.mark.ray

STEPS, HELD = 12, 5
LINE = """
import importlib.util

if importlib.util.find_spec("left_out"):
    raise RuntimeError("a file that .gitignore excludes is there")


class Line:
    def initial(self, rng):
        return {"slope": rng.normal(size=2)}

    def loss(self, parameters, x, y):
        return SCALE * (x @ parameters["slope"] - y) ** 2

    def gradient(self, parameters, x, y):
        return {"slope": SCALE * 2 * x.T @ (x @ parameters["slope"] - y)}
"""
JOB = f"""
model.python.entrypoint = "nets:Line"
code.path = "PATH"
data.builtin = "xor"
training = {{ epochs = {STEPS}, batch_size = 4, microbatches = 2, workers = 1 }}
optimizer.sgd = {{ learning_rate = 0.1 }}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with two shards, over which large models are split."""
    with ExitStack() as stack:
        fleet = ("--slots", "3", "--allow-code")
        cluster = Cluster(tmp_path_factory.mktemp("code"), stack, "--allow-code", fleet=fleet)
        for _ in range(2):
            shard = ("shard", "--server", cluster.address, "--address", "127.0.0.1:0")
            stack.enter_context(service(cluster.home, *shard))
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.address) as client:
        yield client
    cluster.barrier.release()


def modules(scale: float) -> dict[str, str]:
    """A module, and another one that it imports."""
    return {"nets.py": f"from parts import SCALE\n{LINE}", "parts.py": f"SCALE = {scale}\n"}


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def job_of(path: Path) -> Path:
    """The file of a job with the code at a path."""
    file = path.with_suffix(".toml")
    file.write_text(JOB.replace("PATH", path.name))
    return file


def expected(folder: Path) -> str:
    """The digest that a plain loop ends with, which imports `nets` from a folder."""
    spec = load_job(job_of(folder)).spec
    spec.ClearField("code")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        try:
            return layouts.digest(reference(validation.complete(spec))[0])
        finally:
            for name in ("nets", "parts"):
                sys.modules.pop(name, None)


def submit_and_spoil(cluster: Cluster, client: Client, folder: Path) -> Job:
    """A job that has taken some steps and is held, and whose files on its user's disk have changed since it was submitted."""
    cluster.barrier.hold(HELD)
    job = client.submit(job_of(folder))
    (folder / "parts.py").write_text("raise RuntimeError('this is not what was submitted')")
    (folder / "nets.py").unlink()
    wait_for(lambda: job.progress.step == HELD)
    return job


def worker_of(job: Job) -> str:
    """The one worker that a job has, or had last."""
    (name,) = next(event.names for event in reversed(job.history()) if isinstance(event, WorkersChanged) and event.names)
    return name


@pytest.mark.parametrize("kind", ["torch", "jax", "python", "python, numerical"])
def test_a_model_of_each_kind_equals_a_plain_loop(kind: str, cluster: Cluster, client: Client) -> None:
    """With two workers. The module has all kinds of tensors, on the server and two shards."""
    case = MIXED if kind == "torch" else CASES[kind]
    with settled(case):
        spec = case.spec()
        entry = entry_of(spec)
        module, name = entry.entrypoint.split(":")
        spec.code.path = f"{ROOT / module.replace('.', '/')}.py"
        entry.entrypoint = f"{module.rpartition('.')[2]}:{name}"
        spec.training.workers = 2
        job = client.submit(spec)
        job.wait()
        check(job.message, cluster.data, case)
    split = [event.text for event in job.history() if isinstance(event, Notice) and "split over" in event.text]
    assert len(split) == (kind == "torch")


def test_code_is_a_file_a_folder_or_a_wheel(cluster: Cluster, client: Client, tmp_path: Path) -> None:
    single = tmp_path / "nets.py"
    single.write_text(f"SCALE = 0.5\n{LINE}")
    folder = write(tmp_path / "folder", modules(0.5))
    digest = expected(folder)
    (folder / "left_out.py").touch()
    (folder / ".gitignore").write_text("left_*\n")
    packed = wheel(tmp_path, "nets", modules(0.5))
    jobs = [client.submit(job_of(path)) for path in (single, folder, packed)]
    assert [job.wait().weights_sha256 for job in jobs] == [digest] * 3


def test_jobs_of_one_fleet_have_their_own_modules_of_one_name_as_they_were_submitted(
    cluster: Cluster, client: Client, tmp_path: Path
) -> None:
    folders = [write(tmp_path / name, modules(scale)) for name, scale in (("one", 0.25), ("two", 0.75))]
    digests = [expected(folder) for folder in folders]
    jobs = [submit_and_spoil(cluster, client, folder) for folder in folders]
    # Both are at work. Their next workers have to fetch the code again.
    workers = [worker_of(job) for job in jobs]
    cache = cluster.home / ".cache" / "thalweg" / "code"
    assert {job.spec.code.sha256 for job in jobs} <= {folder.name for folder in cache.iterdir()}
    for path in [*cache.rglob("*"), cache]:
        path.chmod(0o700)
    shutil.rmtree(cache)
    for worker in workers:
        kill(worker)
    cluster.barrier.release()
    assert [job.wait().weights_sha256 for job in jobs] == digests
    assert digests[0] != digests[1]
    assert not {worker_of(job) for job in jobs} & set(workers)


def test_a_resumed_job_runs_the_code_that_was_submitted(cluster: Cluster, client: Client, tmp_path: Path) -> None:
    folder = write(tmp_path / "resumed", modules(0.4))
    digest = expected(folder)
    job = submit_and_spoil(cluster, client, folder)
    cluster.server.process.kill()
    cluster.server.process.wait()
    cluster.server = cluster.start_server()
    cluster.barrier.release()
    assert job.wait().weights_sha256 == digest


# The argument is the server's address.
PROGRAM = """
import copy, sys
import numpy as np
import torch
from torch import nn
from thalweg.client import Client, ThalwegError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).tanh())


def absolute(outputs, targets):
    return (outputs - targets).abs().mean(1)


torch.manual_seed(1)
x, net = torch.randn(32, 3), Net()
y = x.sum(1, keepdim=True)
training = {"epochs": 4, "batch_size": 32, "microbatches": 1, "workers": 1}
settings = {"training": training, "optimizer": {"sgd": {"learning_rate": 0.1}}}
with Client(sys.argv[1]) as client:
    job = client.submit(settings, model=net, loss=absolute, data=(x, y))
    job.wait()
    alone = copy.deepcopy(net)
    for _ in range(4):
        alone.zero_grad()
        absolute(alone(x), y).mean().backward()
        for parameter in alone.parameters():
            parameter.data -= 0.1 * parameter.grad
    net.load_state_dict(job.state_dict())
    for name, tensor in alone.state_dict().items():
        np.testing.assert_allclose(net.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    net.eval()
    try:
        raise SystemExit(f"predicted without permission: {job.predict(x)}")
    except ThalwegError as error:
        print(error)
    with torch.no_grad():
        np.testing.assert_allclose(job.predict(x, allow_code=True), net(x), rtol=1e-5, atol=1e-6)
"""


def test_a_module_of_a_program_is_trained_by_value_and_predicts(cluster: Cluster, tmp_path: Path) -> None:
    for package in ("torch", "cloudpickle"):
        pytest.importorskip(package)
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), cluster.address]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "if you trust who wrote it, use thalweg predict --allow-code, or job.predict(x, allow_code=True)" in ran.stdout


@pytest.mark.parametrize(
    ("settings", "waits_for", "status"),
    [
        (
            {"code.requirements": ["packaged-numbers"]},
            job_pb2.WAITING_FOR_PERMISSION,
            "no fleet installs packages for jobs (code.requirements); "
            "start one with `thalweg fleet --allow-code --allow-requirements`",
        ),
        (
            {"model": {"torch": {"entrypoint": "nets:Line"}, "loss": "model"}, "training.resources.gpus": 1},
            job_pb2.WAITING_FOR_SLOTS,
            "no fleet has the 1 CPU slot and 1 GPU on one node that each worker needs",
        ),
    ],
    ids=["requirements", "gpus"],
)
def test_a_job_waits_for_what_no_fleet_has(
    cluster: Cluster, client: Client, settings: dict[str, object], waits_for: int, status: str, tmp_path: Path
) -> None:
    job = client.submit(job_of(write(tmp_path / "waits", modules(0.5))), settings)
    record = wait_for(lambda: job.refresh() if job.refresh().waiting_for == waits_for else None)
    assert record.status == f"waiting for workers: {status}"
    changed = job.history()[-1]
    assert isinstance(changed, StateChanged)
    assert (changed.status, changed.waiting_for) == (record.status, waiting_name(record.waiting_for))
    assert job.cancel() == "CANCELLED"
