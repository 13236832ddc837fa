"""What a worker reports of its machine, and that one whose results would have other bits does not work beside others."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_limits

from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.command import wait_for
from tests.end_to_end.peer import Peer
from tests.server.test_training_service import PREPARED, make_spec
from thalweg.contract.endpoint import Endpoint
from thalweg.contract.errors import ThalwegError
from thalweg.v1 import job_pb2, training_service_pb2
from thalweg.v1 import parameter_service_pb2 as pb
from thalweg.workers.premises import premises
from thalweg.workers.worker import work

PROGRAM = """
import json
from thalweg.workers.premises import premises
print(json.dumps({premise.name: premise.value for premise in premises(["SciPy"])}))
"""


def found(**environment: str) -> dict[str, str]:
    """The premises in a process with an environment."""
    printed = subprocess.check_output([sys.executable, "-c", PROGRAM], env={**os.environ, **environment}, text=True)
    answer: dict[str, str] = json.loads(printed)
    return answer


def test_they_name_the_processor_and_what_computes() -> None:
    names = {"processor", "instructions", "C library", "NumPy", "BLAS", "BLAS kernels", "BLAS threads", "SciPy"}
    assert set(found()) == names
    assert all(found().values())
    assert found() == found(), "they are the same in every process"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names kernels and instructions of this processor")
def test_other_kernels_and_other_instructions_are_other_premises() -> None:
    ours, kernels = found(), "Nehalem"
    if "openblas" not in ours["BLAS"]:
        pytest.skip("names kernels of OpenBLAS")
    others = found(OPENBLAS_CORETYPE=kernels)
    assert {name for name in ours if ours[name] != others[name]} == {"BLAS kernels"}
    assert others["BLAS kernels"] == kernels
    without = ours["instructions"].split()[-1]
    assert {name: value for name, value in found(NPY_DISABLE_CPU_FEATURES=without).items() if value != ours[name]} == {
        "instructions": ours["instructions"].removesuffix(without).rstrip()
    }


def test_the_number_of_threads_is_the_one_at_work() -> None:
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            told = {premise.name: premise.value for premise in premises(())}
        assert told["BLAS threads"] == str(threads)


def test_a_package_that_the_model_does_not_need_is_no_premise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def recorded(packages: Any) -> list[pb.Premise]:
        asked.append(sorted(packages))
        return premises(packages)

    monkeypatch.setattr("thalweg.workers.premises.premises", recorded)
    dense, loss = {"dense": {"units": 1}}, "mean_squared_error"
    nested: dict[str, Any] = {"sequence": {"layers": [{"gelu": {}}]}}
    with running_server(tmp_path) as server, stub_of(server) as stub:
        for number, between in enumerate(({"gelu": {"approximate": "tanh"}}, {"gelu": {}}, nested)):
            spec = make_spec(model={"layers": [dense, between, dense], "loss": loss})
            stub.CreateJob(training_service_pb2.CreateJobRequest(spec=spec, job_id=f"job-{number}"))
            assert work(Endpoint(server.address), f"job-{number}", "one") == "the job ended: SUCCEEDED"
    assert asked == [[], ["SciPy"], ["SciPy"]]


def test_a_worker_on_another_kind_of_machine_is_refused_with_what_differs_and_what_to_do(tmp_path: Path) -> None:
    odd = pb.Prepared()
    odd.CopyFrom(PREPARED)
    odd.premises.extend(premises(()))
    next(premise for premise in odd.premises if premise.name == "BLAS kernels").value = "Odd\x1b[2J"
    with running_server(tmp_path) as server, stub_of(server) as stub:
        stub.CreateJob(training_service_pb2.CreateJobRequest(spec=make_spec(), job_id="a"))
        with Peer(server.address) as first:
            first.hello("a")
            first.prepare(odd)
            with threadpool_limits(1, "blas"), pytest.raises(ThalwegError) as refused:
                work(Endpoint(server.address), "a", "second")
            assert refused.value.reason == "OTHER_MACHINE"
            assert "BLAS kernels: " in str(refused.value)
            assert ", the first worker's Odd\\x1b[2J; run it on a machine with the same processor" in str(refused.value)
            assert "training.mixed_machines = true" in str(refused.value)

        def left() -> bool:
            return not stub.GetJob(training_service_pb2.GetJobRequest(job_id="a")).job.progress.workers

        wait_for(left)
        assert work(Endpoint(server.address), "a", "second") == "the job ended: SUCCEEDED"
        job = stub.GetJob(training_service_pb2.GetJobRequest(job_id="a")).job
        assert job.progress.machine_kinds == 1


def test_mixed_machines_work_together_and_are_counted(tmp_path: Path) -> None:
    odd = pb.Prepared(premises=[pb.Premise(name="NumPy", value="1.0")])
    odd.MergeFrom(PREPARED)
    training = {"epochs": 2, "batch_size": 4, "microbatches": 1, "mixed_machines": True}
    with running_server(tmp_path) as server, stub_of(server) as stub:
        stub.CreateJob(training_service_pb2.CreateJobRequest(spec=make_spec(training=training), job_id="a"))
        with Peer(server.address) as first:
            first.hello("a")
            first.prepare(odd)
            assert work(Endpoint(server.address), "a", "second") == "the job ended: SUCCEEDED"
        job = stub.GetJob(training_service_pb2.GetJobRequest(job_id="a")).job
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED
        assert job.progress.machine_kinds == 2
