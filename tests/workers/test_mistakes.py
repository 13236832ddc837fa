"""Mistakes in the code of a job's author: each fails its job with one clear error, and the server goes on with other jobs."""

import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.cluster import running_server, stub_of, train
from tests.end_to_end.command import wait_for
from tests.learning.kinds.cases import require
from tests.server.test_code import get, upload
from tests.server.test_crashes import attending, is_given
from tests.server.test_training_service import make_spec
from tests.workers.archives import zipped
from thalweg.contract.endpoint import Endpoint
from thalweg.contract.states import ENDED
from thalweg.server.deciding.workers.failures import MAX_DEATHS
from thalweg.server.process import Server
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.workers import watch
from thalweg.workers.crashes import LastWords, last_words
from thalweg.workers.worker import work

# A model whose methods a test replaces.
MODEL = """
import os, sys, time
import numpy as np

class Model:
    def initial(self, rng):
        return {"w": np.zeros(2)}

    def loss(self, parameters, x, y):
        return (x @ parameters["w"] - y.reshape(len(x))) ** 2

    def gradient(self, parameters, x, y):
        return {"w": 2 * x.T @ (x @ parameters["w"] - y.reshape(len(x)))}

class Pairs:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return np.ones(2), np.float64(index)

def build():
    return Model()
"""
MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x):
        return self.linear(x)

def build():
    return Net()

def loss(outputs, y):
    return outputs
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(tmp_path_factory.mktemp("server"), allow_code=True) as server,
    ):
        patch.setenv("THALWEG_CODE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield server


@pytest.fixture(autouse=True)
def other_jobs_go_on(server: Server) -> Iterator[None]:
    """After each mistake, another job trains to its end on the same server."""
    yield
    job = train(server, make_spec())
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error


def spec_of(server: Server, code: str, model: dict[str, Any] | None = None, **more: Any) -> job_pb2.JobSpec:
    """Of a job with a module `nets_of_a_job`."""
    with stub_of(server) as stub:
        sha256 = upload(stub, zipped({"nets_of_a_job.py": code}))
    given = model or {"python": {"entrypoint": "nets_of_a_job:build"}}
    return make_spec(model=given, code={"path": "nets.py", "sha256": sha256}, **more)


def error_of(server: Server, spec: job_pb2.JobSpec) -> str:
    job = train(server, spec)
    assert job.state == job_pb2.JOB_STATE_FAILED
    return job.error


def line_of(code: str, text: str) -> int:
    """The number of the first line with a text."""
    return next(number for number, line in enumerate(code.splitlines(), 1) if text in line)


def replaced(method: str, body: str) -> str:
    """The model, with another body of a method or function, in one line."""
    return re.sub(rf"( *)(def {method}\(.*\):\n)( *return .*\n)", rf"\1\2\1    {body}\n", MODEL, count=1)


LOAD: list[tuple[str, str, str]] = [
    ("", "nowhere_of_a_job:build", "model.python.entrypoint: there is no module nowhere_of_a_job; it must be in code.path"),
    (MODEL, "nets_of_a_job:buidl", "the module nets_of_a_job (nets_of_a_job.py) has no buidl; did you mean build?"),
    ("build = 3", "nets_of_a_job:build", "nets_of_a_job:build is of type int, which cannot be called"),
    ("1 +", "nets_of_a_job:build", "SyntaxError: invalid syntax (at nets_of_a_job.py:1"),
    ("\nraise OSError('early')", "nets_of_a_job:build", "OSError: early (at nets_of_a_job.py:2: raise OSError('early'))"),
    ("import sys\nsys.exit(3)", "nets_of_a_job:build", "SystemExit: 3 (at nets_of_a_job.py:2: sys.exit(3))"),
    (
        "\n\nimport einoops",
        "nets_of_a_job:build",
        f"the code needs the package einoops, which is not installed where it runs, on {platform.node()} (at nets_of_a_job.py:3: "
        "import einoops); install it there, or add it to code.requirements",
    ),
]


@pytest.mark.parametrize(("code", "entrypoint", "words"), LOAD)
def test_code_that_cannot_be_loaded(server: Server, code: str, entrypoint: str, words: str) -> None:
    error = error_of(server, spec_of(server, code, {"python": {"entrypoint": entrypoint}}))
    assert error.startswith("model.python.entrypoint: ")
    assert words in error


CALLS: list[tuple[str, str, str]] = [
    ("build", "return 3", "model.python: the entry point gave int, which has no method initial(rng)"),
    ("build", "raise KeyError('depth')", "model.python: KeyError: 'depth' (at nets_of_a_job.py:{} in build: raise"),
    ("build", "sys.exit('enough')", "model.python: SystemExit: enough (at nets_of_a_job.py:{} in build: sys.exit"),
    ("initial", "return [1]", "model.python: initial(rng) gave list, not a dict of arrays by name"),
    ("initial", "self.n = getattr(self, 'n', 0) + 1; return {'w': np.zeros(self.n)}", "gave other names or shapes when it was"),
    ("loss", "return x", "model.python: loss(parameters, x, y) gave the shape (4, 2) for 4 samples; return a loss for each"),
    ("loss", "return x[:, 0] * np.nan", "model.python: the loss of the first samples is nan"),
    ("loss", "return x[:, 0] + parameters['x']", "model.python: KeyError: 'x' (at nets_of_a_job.py:{} in loss: return"),
    ("loss", "sys.exit()", "model.python: SystemExit (at nets_of_a_job.py:{} in loss: sys.exit()"),
    ("gradient", "return {'w': np.zeros(3)}", "gradient(parameters, x, y) gave the shape (3,) for w, which has the shape (2,)"),
    (
        "gradient",
        "parameters['w'][0] = 1",
        "ValueError: assignment destination is read-only (at nets_of_a_job.py:{}",
    ),
]


@pytest.mark.parametrize(("method", "body", "words"), CALLS)
def test_code_that_is_not_right(server: Server, method: str, body: str, words: str) -> None:
    code = replaced(method, body)
    error = error_of(server, spec_of(server, code))
    assert words.format(line_of(code, body)) in error
    assert error.startswith("model.python: ")


def test_a_loss_that_becomes_nan(server: Server) -> None:
    loss = "(x @ parameters['w'] - y.reshape(len(x))) ** 2"
    code = replaced("loss", f"return {loss} * (1 if abs(parameters['w']).max() < 0.1 else np.nan)")
    error = error_of(server, spec_of(server, code, optimizer={"sgd": {"learning_rate": 0.5}}))
    assert error.startswith("the loss became nan at step "), error


@pytest.mark.parametrize(
    ("loss", "old", "new", "words"),
    [
        ("nets_of_a_job:loss", "", "", "model.loss: returned a tensor of type float32 and shape (2, 1) for 2 samples"),
        ("nets_of_a_job:loss", "return outputs", "return 1", "model.loss: returned int, not a tensor"),
        ("nets_of_a_job:loss", "return outputs", "return outputs.nowhere", "model.loss: AttributeError: "),
        (
            "mean_squared_error",
            "return self.linear(x)",
            "self.linear.weight.data = torch.zeros(1, 3)",
            "model.torch: the module changes its parameter linear.weight",
        ),
        ("mean_squared_error", "return self.linear(x)", "return 'a'", "model.torch: the module returned str, not a tensor"),
        ("mean_squared_error", "return Net()", "return 3", "model.torch"),
    ],
)
def test_modules_that_are_not_right(server: Server, loss: str, old: str, new: str, words: str) -> None:
    require("torch")
    spec = spec_of(
        server, MODULE.replace(old, new) if old else MODULE, {"torch": {"entrypoint": "nets_of_a_job:build"}, "loss": loss}
    )
    assert words in error_of(server, spec)


@pytest.mark.parametrize("method", ["__len__", "__getitem__"])
def test_data_sets_that_are_not_right(server: Server, method: str) -> None:
    code = replaced(method, "return nowhere")
    spec = spec_of(server, code, data={"python": {"entrypoint": "nets_of_a_job:Pairs"}})
    where = f"nets_of_a_job.py:{line_of(code, 'return nowhere')} in {method}: return nowhere"
    assert error_of(server, spec) == f"data.python: NameError: name 'nowhere' is not defined (at {where})"


def test_code_that_prints_without_end_is_cut(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    code = replaced("initial", "[print('x' * 99_999) for _ in range(99)]; return {'w': np.zeros(2)}")
    job = train(server, spec_of(server, code))
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    printed = capsys.readouterr().out
    assert 10_000 < len(printed) < 1_000_000
    assert "further output of the job's code is left out for a minute" in printed


def test_code_that_forks(server: Server) -> None:
    """The new process comes back from the code, where it would answer tasks as a second worker."""
    body = "self.child = getattr(self, 'child', None) or os.fork() or 1; return x[:, 0] * parameters['w'][0]"
    code = replaced("loss", body).replace("def gradient", "def slope")
    training = {"epochs": 1_000_000, "batch_size": 4, "microbatches": 1}
    error = error_of(server, spec_of(server, code, training=training))
    where = f"nets_of_a_job.py:{line_of(code, 'os.fork')} in loss: self.child"
    assert error.startswith(f"model.python: the code (at {where}")
    assert "forked the process, and the new process came back from the code; end it in the code" in error


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("import", "model.python.entrypoint: making the model"),
        ("build", "model.python: making the model"),
        ("loss", "model.python: making the model"),
        ("__getitem__", "data.python: loading the data"),
        ("gradient", "model.python: computing a gradient"),
    ],
)
def test_code_that_never_ends(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, what: str) -> None:
    begun, stop = tmp_path / "begun", tmp_path / "stop"
    # Time passes when the code has begun, so that nothing else takes too long, however slow this machine is.
    monkeypatch.setattr(watch, "monotonic", lambda: 1000.0 if begun.exists() else 0.0)
    begins = f"open({str(begun)!r}, 'w').close()"
    forever = f"while not os.path.exists({str(stop)!r}): time.sleep(0.01)"
    if where == "import":
        code, at = f"{MODEL}{begins}\n{forever}\n", ""
    elif where == "gradient":
        # Only when the parameters have changed: in training.
        condition = "if parameters['w'].max() > 0.1:"
        lines = f"        {condition}\n            {begins}\n            {forever}\n"
        code, at = MODEL.replace('        return {"w": 2', f'{lines}        return {{"w": 2'), " in gradient"
    else:
        code, at = replaced(where, f"{begins}\n        {forever}"), f" in {where}"
    if where == "build":
        code = code.replace(f"        {forever}", f"    {forever}")
    more: dict[str, Any] = {"data": {"python": {"entrypoint": "nets_of_a_job:Pairs"}}} if where == "__getitem__" else {}
    more["optimizer"] = {"sgd": {"learning_rate": 0.5}}
    training = {"epochs": 50, "batch_size": 4, "microbatches": 1, "task_seconds": 100}
    with stub_of(server) as stub:
        job_id = stub.CreateJob(pb.CreateJobRequest(spec=spec_of(server, code, training=training, **more))).job.id
        thread = threading.Thread(target=work, args=(Endpoint(server.address), job_id, "worker"), kwargs={"allow_code": True})
        thread.start()
        wait_for(lambda: get(stub, job_id).state in ENDED)
        error = get(stub, job_id).error
        stop.touch()
        thread.join()
    line = f"nets_of_a_job.py:{line_of(code, forever)}{at}: while not os.path.exists"
    assert error.startswith(f"{what} took longer than training.task_seconds, 100 s (at {line}")


# A worker in a process of its own.
PROCESS = """
import sys
from thalweg.contract.process import prepare
prepare()
from thalweg.contract.endpoint import Endpoint, parse_address
from thalweg.workers.worker import work
work(Endpoint(parse_address(sys.argv[1])), sys.argv[2], "worker", allow_code=True, own_process=True)
"""


def process(server: Server, job_id: str, log: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """A worker's process, which has ended. What it writes to its log is in a file."""
    command = [sys.executable, "-c", PROCESS, str(server.address), job_id]
    with open(log or os.devnull, "w", encoding="utf-8") as errors:  # noqa: PTH123 - also of no file
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "body", ["os._exit(7)", "import threading; threading.Thread(target=lambda: os._exit(7)).start(); time.sleep(99)"]
)
def test_code_that_ends_its_process(server: Server, body: str) -> None:
    code = replaced("loss", body)
    with stub_of(server) as stub:
        job_id = stub.CreateJob(pb.CreateJobRequest(spec=spec_of(server, code))).job.id
        assert process(server, job_id).returncode == 7
        where = f"nets_of_a_job.py:{line_of(code, body)} in {'<lambda>' if 'lambda' in body else 'loss'}: {body}"[:100]
        assert get(stub, job_id).error.startswith(f"model.python: the code ended its process, with exit code 7 (at {where}")


def test_a_process_that_code_forks_may_end_itself(server: Server) -> None:
    code = replaced("build", "(child := os.fork()) or os._exit(7); assert os.waitpid(child, 0)[1] == 7 << 8; return Model()")
    with stub_of(server) as stub:
        job_id = stub.CreateJob(pb.CreateJobRequest(spec=spec_of(server, code))).job.id
        assert process(server, job_id).returncode == 0
        assert get(stub, job_id).state == job_pb2.JOB_STATE_SUCCEEDED, get(stub, job_id).error


def test_code_whose_process_is_killed(server: Server) -> None:
    """To the server that is a worker that was lost; its fleet knows that the process died, and after some the job fails."""
    spec = spec_of(server, replaced("loss", "os.kill(os.getpid(), 9)"))
    with stub_of(server) as stub, attending(server, "mill", allow_code=True) as fleet:
        job_id = stub.CreateJob(pb.CreateJobRequest(spec=spec)).job.id
        fleet.told(is_given(job_id))
        assert process(server, job_id).returncode == -signal.SIGKILL
        for _ in range(MAX_DEATHS):
            assert get(stub, job_id).state not in ENDED
            fleet.exited(job_id, "its process died: it was killed", died=True)
        wait_for(lambda: get(stub, job_id).state in ENDED)
        assert get(stub, job_id).error.startswith(
            f"model.python.entrypoint: nets_of_a_job:build: the processes of {MAX_DEATHS} workers in a row died, and none "
            "contributed; the last one: its process died: it was killed; code ends its process by a crash"
        )


@pytest.mark.parametrize(
    ("body", "problem", "number"),
    [
        ("import ctypes; ctypes.string_at(0)", "Segmentation fault", signal.SIGSEGV),
        ("os.abort()", "Aborted", signal.SIGABRT),
        ("import signal; signal.raise_signal(signal.SIGFPE)", "Floating point exception", signal.SIGFPE),
        ("sys.setrecursionlimit(10**9); f = lambda n: sum(map(f, [n + 1])); f(0)", "Segmentation fault", signal.SIGSEGV),
    ],
)
def test_code_that_crashes_its_process(server: Server, tmp_path: Path, body: str, problem: str, number: int) -> None:
    """The process leaves the author's line in its log, also where the thread's stack has overflowed."""
    code = replaced("loss", body)
    with stub_of(server) as stub:
        job_id = stub.CreateJob(pb.CreateJobRequest(spec=spec_of(server, code))).job.id
        assert process(server, job_id, tmp_path / "log").returncode == -number
        stub.CancelJob(pb.CancelJobRequest(job_id=job_id))
    words = str(last_words(str(tmp_path / "log")))
    assert words.startswith(f"{problem} (at nets_of_a_job.py:{line_of(code, body)} in ")
    assert words.endswith(f": {body})")
    assert len(words) < 500


def test_a_crash_of_a_process_that_code_forks_is_not_the_workers(server: Server, tmp_path: Path) -> None:
    code = replaced("loss", "os.fork() or os.abort(); os.wait(); os.kill(os.getpid(), 9)")
    with stub_of(server) as stub:
        job_id = stub.CreateJob(pb.CreateJobRequest(spec=spec_of(server, code))).job.id
        assert process(server, job_id, tmp_path / "log").returncode == -signal.SIGKILL
        stub.CancelJob(pb.CancelJobRequest(job_id=job_id))
    assert "Fatal Python error: Aborted" in (tmp_path / "log").read_text()
    assert last_words(str(tmp_path / "log")) == LastWords()


@pytest.mark.parametrize("silence", [3.0, pytest.param(600.0, marks=pytest.mark.nightly)])
def test_code_that_holds_pythons_lock(tmp_path: Path, silence: float) -> None:
    """No thread of the process can say anything: it ends by itself, and its log has the line. The second one fails the job."""
    code = replaced("build", "import re; re.match('(a+)+$', 'a' * 99 + 'b')")
    training = {"epochs": 1, "batch_size": 4, "microbatches": 1} | ({"task_seconds": 1} if silence > 60 else {})
    where = f"nets_of_a_job.py:{line_of(code, 'import re')} in build: import re; re.match"
    with (
        running_server(tmp_path, allow_code=True, silence_seconds=silence) as server,
        stub_of(server) as stub,
        attending(server, "mill", allow_code=True) as fleet,
    ):
        job_id = stub.CreateJob(pb.CreateJobRequest(spec=spec_of(server, code, training=training))).job.id
        fleet.told(is_given(job_id))
        for _ in range(2):
            assert get(stub, job_id).state not in ENDED
            assert process(server, job_id, tmp_path / "log").returncode == 1
            words = last_words(str(tmp_path / "log"))
            assert str(words).startswith(f"it held Python's lock for too long (at {where}")
            fleet.exited(job_id, f"its process died: {words}", died=True, line=words.line)
        wait_for(lambda: get(stub, job_id).state in ENDED)
        error = get(stub, job_id).error
    assert f"2 workers in a row died, and none contributed; the last one: its process died: {words}; code ends" in error


def test_a_process_whose_code_never_ends_ends(server: Server) -> None:
    code = replaced("build", "while True: time.sleep(0.01)")
    with stub_of(server) as stub:
        training = {"epochs": 1, "batch_size": 4, "microbatches": 1, "task_seconds": 5}
        job_id = stub.CreateJob(pb.CreateJobRequest(spec=spec_of(server, code, training=training))).job.id
        assert process(server, job_id).returncode == 1
        assert f"nets_of_a_job.py:{line_of(code, 'while True')} in build: " in get(stub, job_id).error


def test_a_limit_does_not_disturb_what_is_quick(server: Server) -> None:
    job = train(server, spec_of(server, MODEL, training={"epochs": 3, "batch_size": 4, "microbatches": 1, "task_seconds": 3600}))
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
