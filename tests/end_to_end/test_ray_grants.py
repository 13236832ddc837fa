"""What Ray gives workers besides CPU slots: the packages that a job requires, and GPUs, of which there are made-up ones."""

import os
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.end_to_end.command import THALWEG, wait_for
from tests.end_to_end.test_cluster import Cluster
from tests.workers.archives import wheel
from thalweg.client import Client, Job, JobFailedError, ThalwegError
from thalweg.client.records import ENDED
from thalweg.v1 import job_pb2

pytestmark = [pytest.mark.ray, pytest.mark.install]

GPUS = 2
NETS = """
import numpy as np
import packaged_numbers


class Line:
    def initial(self, rng):
        return {"slope": np.full(2, packaged_numbers.START)}

    def loss(self, parameters, x, y):
        return (x @ parameters["slope"] - y) ** 2

    def gradient(self, parameters, x, y):
        return {"slope": 2 * x.T @ (x @ parameters["slope"] - y)}
"""
# Its workers say which GPU they got, and wait.
WAITING = """
import os, pathlib, time
from torch import nn


class Samples:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return [index / 4], index % 2


def samples(folder):
    place = pathlib.Path(folder)
    (place / str(os.getpid())).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    while not (place / "go").exists():
        time.sleep(0.01)
    return Samples()


def net():
    return nn.Linear(1, 2)
"""


def small_environment(folder: Path) -> Path:
    """The program of an environment that sees the packages of this one, and is small, for Ray copies it to install others."""
    venv.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    program = folder / "thalweg"
    program.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" "{THALWEG}" "$@"\n')
    program.chmod(0o755)
    return program


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose fleet installs packages, from a folder alone, and has two GPUs, as Ray believes."""
    home = tmp_path_factory.mktemp("grants")
    (home / "packages").mkdir()
    wheel(home / "packages", "packaged_numbers", {"packaged_numbers.py": "START = 0.5\n"})
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(home / "packages"), "PIP_CONFIG_FILE": os.devnull}
    gpus = {"RAY_OVERRIDE_RESOURCES": f'{{"GPU": {GPUS}}}'}
    program = small_environment(home / "environment")
    fleet = ("--slots", "4", "--allow-code", "--allow-requirements")
    with ExitStack() as stack:
        yield Cluster(home, stack, "--allow-code", fleet=fleet, program=program, environment=pip | gpus)


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.address) as client:
        yield client


def submit(client: Client, cluster: Cluster, code: str, text: str) -> Job:
    """Submits a job with some code."""
    (cluster.home / "nets.py").write_text(code)
    (cluster.home / "job.toml").write_text(text)
    return client.submit(cluster.home / "job.toml")


def trouble(job: Job) -> str:
    """What keeps a job from having workers, which is waited for."""

    def found() -> str:
        record = job.refresh()
        return record.status if record.waiting_for == job_pb2.WAITING_FOR_NODE else ""

    return str(wait_for(found))


def requiring(requirement: str) -> str:
    return f"""
        model.python.entrypoint = "nets:Line"
        code = {{ path = "nets.py", requirements = ["{requirement}"] }}
        data.builtin = "xor"
        training = {{ epochs = 2, batch_size = 4, workers = 2, microbatches = 2 }}
        optimizer.sgd = {{}}
    """


def test_packages_are_installed_for_a_jobs_workers_and_one_that_cannot_be_is_named(client: Client, cluster: Cluster) -> None:
    wrong = submit(client, cluster, NETS, requiring("packaged_numbers==99"))
    told = trouble(wrong)
    assert f"failed on {os.uname().nodename}" in told
    assert "code.requirements cannot be installed: ERROR: " in told
    assert "packaged_numbers==99" in told
    # There is one node.
    assert "and on" not in told
    # The fleet goes on.
    right = submit(client, cluster, NETS, requiring("packaged_numbers==1.0"))
    assert right.wait().state == "SUCCEEDED"
    assert wrong.state not in ENDED
    assert wrong.cancel() == "CANCELLED"
    missing = f"the code needs the package packaged_numbers, which is not installed where it runs, on {os.uname().nodename}"
    # Others do not have what is installed for one job's workers.
    with pytest.raises(ThalwegError, match=missing):
        right.predict([[0, 1]], allow_code=True)
    without = submit(client, cluster, NETS, requiring("").replace(', requirements = [""]', ""))
    with pytest.raises(JobFailedError, match=missing):
        without.wait()
    assert "Traceback" not in cluster.fleet.stderr


def test_each_worker_has_a_gpu_of_its_own_and_without_cuda_its_node_is_named(client: Client, cluster: Cluster) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    places = cluster.home / "places"
    places.mkdir()
    text = f"""
        model = {{ torch = "nets:net", loss = "softmax_cross_entropy" }}
        code.path = "nets.py"
        data.python = {{ entrypoint = "nets:samples", arguments.folder = "{places}" }}
        training = {{ epochs = 1, batch_size = 4, workers = 3, resources = {{ cpus = 1, gpus = 1 }} }}
        optimizer.sgd = {{}}
    """
    job = submit(client, cluster, WAITING, text)
    wait_for(lambda: len(list(places.iterdir())) == GPUS)
    room = f"the fleets have 4 CPU slots and {GPUS} GPUs, room for {GPUS} of the 4 workers; more start when there is room"
    assert job.scale(4) == room
    assert sorted(file.read_text() for file in places.iterdir()) == ["0", "1"]
    (places / "go").touch()
    told = trouble(job)
    assert f"failed on {os.uname().nodename}" in told
    assert "training.resources.gpus: this machine has no GPU for this worker: its PyTorch" in told
    # A job that wants none is trained meanwhile.
    assert client.submit("and").wait().state == "SUCCEEDED"
    assert job.cancel() == "CANCELLED"
    assert "Traceback" not in cluster.fleet.stderr
