"""`thalweg train`: server, Ray and workers on this machine, as a newcomer runs it."""

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from tests.end_to_end.barrier import Barrier
from tests.end_to_end.command import Running, thalweg, wait_for
from tests.end_to_end.watching import undisturbed
from thalweg.client import local
from thalweg.client.records import StepsTaken

pytestmark = pytest.mark.ray


def test_a_network_learns_to_read_digits(tmp_path: Path) -> None:
    ended = thalweg(tmp_path, "train", "digits", "--json")
    assert ended.code == 0, ended.stderr
    answer = ended.answer
    assert answer["state"] == "SUCCEEDED"
    assert (answer["steps"], answer["epochs"]) == (690, 30)
    assert answer["validation"]["accuracy"] >= 0.97
    assert answer["train_accuracy"] > 0.99
    assert answer.keys() >= {"job", "train_loss", "weights", "weights_sha256", "samples_per_second", "seconds"}
    with safe_open(answer["weights"], framework="numpy") as file:
        # The slab begins with the last layer.
        slab = np.concatenate([file.get_tensor(name).ravel() for name in ("3.weight", "3.bias", "0.weight", "0.bias")])
    assert hashlib.sha256(slab.tobytes()).hexdigest() == answer["weights_sha256"]
    assert "epoch 30 of 30" in ended.stderr
    listed = thalweg(tmp_path, "jobs", "--json").answer["jobs"]
    assert [job["weights_sha256"] for job in listed] == [answer["weights_sha256"]]


def test_bulk_results_depend_on_the_job_alone(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"training.microbatches": 4, "training.epochs": 3}
    with local(workers=3, data=tmp_path) as client:
        jobs = [client.submit("digits", settings | {"training.workers": workers}) for workers in (1, 2, 3)]
        other = client.submit("digits", settings | {"training.workers": 2, "seed": 8})
        digests = {job.wait().weights_sha256 for job in jobs}
        assert len(digests) == 1
        assert other.wait().weights_sha256 not in digests


def test_a_file_called_like_a_module_in_the_current_folder_is_not_run(tmp_path: Path) -> None:
    for module in ("threadpoolctl", "numpy", "ray", "numbers", "thalweg", "data"):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__)\nraise SystemExit\n")
    ended = thalweg(tmp_path, "train", "and", "--json", PYTHONPATH="")
    assert ended.code == 0, ended.stderr
    assert not (tmp_path / "ran").exists()


def test_it_trains_without_a_home(tmp_path: Path) -> None:
    # Nobody can make a folder there.
    nowhere = "/proc/nobody"
    given = ("--data", str(tmp_path / "jobs"))
    ended = thalweg(tmp_path, "train", "and", "--json", *given, HOME=nowhere, XDG_DATA_HOME="")
    assert ended.code == 0, ended.stderr
    assert Path(ended.answer["weights"]).is_relative_to(tmp_path / "jobs")
    refused = thalweg(tmp_path, "train", "and", HOME=nowhere, XDG_DATA_HOME="")
    assert refused.code == 1
    assert "cannot use the data folder /proc/nobody/.local/share/thalweg/embedded" in refused.stderr


def test_xor_is_learnt_by_numerical_differentiation(tmp_path: Path) -> None:
    ended = thalweg(tmp_path, "train", "xor", "--json", "--set", "training.gradient=numerical")
    assert ended.code == 0, ended.stderr
    assert ended.answer["train_accuracy"] == 1.0
    assert "numerical differentiation: 33 parameters × 2 evaluations" in ended.stderr


@pytest.mark.nightly
def test_the_gates_are_learnt_either_way(tmp_path: Path) -> None:
    with local(workers=2, data=tmp_path) as client:
        jobs = {
            (gate, gradient): client.submit(gate, {"training.gradient": gradient, "training.workers": 1})
            for gate in ("and", "or", "nand", "xor")
            for gradient in ("backpropagation", "numerical")
        }
        results = {key: job.wait() for key, job in jobs.items()}
    for key, result in results.items():
        assert result.train, key
        assert result.train.accuracy == 1.0, key


@pytest.mark.nightly
def test_numerical_and_backpropagated_training_follow_the_same_curve(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model.dtype": "float64", "training.epochs": 200}
    curves = []
    with local(workers=2, data=tmp_path) as client:
        for gradient in ("backpropagation", "numerical"):
            job = client.submit("xor", settings | {"training.gradient": gradient})
            steps = [event for event in job.watch() if isinstance(event, StepsTaken)]
            curves.append([loss for event in steps for loss in event.losses])
    assert len(curves[0]) == len(curves[1]) == 200
    assert curves[0] != curves[1]
    np.testing.assert_allclose(curves[1], curves[0], rtol=0, atol=1e-5)


def test_no_epochs_yield_the_initial_parameters(tmp_path: Path) -> None:
    ended = thalweg(tmp_path, "train", "and", "--json", "--set", "training.epochs=0")
    assert ended.code == 0, ended.stderr
    assert ended.answer["steps"] == 0
    with safe_open(ended.answer["weights"], framework="numpy") as file:
        assert file.get_tensor("0.bias").tolist() == [0.0]
        assert file.get_tensor("0.weight").any()


@pytest.fixture
def held(tmp_path: Path) -> Barrier:
    """A barrier at which jobs wait after some steps."""
    barrier = Barrier(tmp_path / "barrier.json")
    barrier.hold(20)
    return barrier


def test_ctrl_c_ends_the_job_and_says_where_what_was_learnt_lies(tmp_path: Path, held: Barrier) -> None:
    running = Running(tmp_path, "train", "digits", **held.environment)
    running.until("2 workers")
    wait_for(lambda: _steps(tmp_path) > 0)
    running.interrupt()
    ended = running.end()
    assert ended.code == 130, ended.stderr
    assert running.left_behind() == []
    assert "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if "the parameters so far are in" in line]
    weights = Path(line.rpartition(" in ")[2])
    with safe_open(weights, framework="numpy") as file:
        assert np.isfinite(file.get_tensor("0.weight")).all()
    (job,) = thalweg(tmp_path, "jobs", "--json").answer["jobs"]
    assert job["state"] == "CANCELLED"
    assert job["steps"] > 0


def _steps(home: Path) -> int:
    """The steps of the only job of this home, as another process sees it."""
    ended = thalweg(home, "jobs", "--json")
    return int(ended.answer["jobs"][0]["steps"]) if ended.code == 0 and ended.answer["jobs"] else 0


@pytest.mark.parametrize("text", ["starting Ray", "waiting for the first worker"])
def test_ctrl_c_before_the_first_step_leaves_nothing_either(text: str, tmp_path: Path, held: Barrier) -> None:
    running = Running(tmp_path, "train", "digits", **held.environment)
    running.until(text)
    running.interrupt()
    ended = running.end()
    assert ended.code == 130, ended.stderr
    assert running.left_behind() == []
    assert "Traceback" not in ended.stderr
    assert "digits-1 was interrupted after" in ended.stderr
    # Once.
    assert "interrupted again" not in ended.stderr
    assert "to resume: thalweg train --resume digits-1" in ended.stderr


def test_sigterm_ends_the_job_too(tmp_path: Path, held: Barrier) -> None:
    running = Running(tmp_path, "train", "digits", "--json", **held.environment)
    running.until("2 workers")
    running.process.terminate()
    ended = running.end()
    assert ended.code == 128 + signal.SIGTERM, ended.stderr
    assert running.left_behind() == []
    assert json.loads(ended.stdout)["state"] == "CANCELLED"


def test_a_job_for_a_gpu_does_not_wait_where_there_is_none(tmp_path: Path) -> None:
    job = """
        model = { torch = "torch.nn:Flatten", loss = "softmax_cross_entropy" }
        data.builtin = "digits"
        training.resources.gpus = 1
        optimizer.sgd = {}
    """
    (tmp_path / "job.toml").write_text(job)
    ended = thalweg(tmp_path, "train", "job.toml", RAY_OVERRIDE_RESOURCES='{"GPU": 0}')
    assert ended.code == 1
    assert "thalweg: training.resources.gpus: each worker takes 1, and Ray finds 0 GPUs on this machine\n" in ended.stderr
    assert [job["state"] for job in thalweg(tmp_path, "jobs", "--json").answer["jobs"]] == ["CANCELLED"]


def npz(folder: Path) -> str:
    """A file of data."""
    np.savez(folder / "data.npz", x=np.random.default_rng(0).normal(size=(40, 4)), y=np.arange(40) % 10)
    return str(folder / "data.npz")


def test_what_is_only_found_in_training_fails_the_job_in_one_line(tmp_path: Path) -> None:
    layers, loss = "model.layers=[{dense={units=1}}]", "model.loss=mean_squared_error"
    settings = [f"data.npz={npz(tmp_path)}", layers, loss, "optimizer={sgd={learning_rate=1e30}}"]
    ended = thalweg(tmp_path, "train", "digits", "--json", *[part for setting in settings for part in ("--set", setting)])
    assert ended.code == 1
    complaints = [line for line in ended.stderr.splitlines() if line.startswith("thalweg: ")]
    assert complaints[0].startswith("thalweg: job digits-1 failed: ")
    assert "Lower the optimizer's learning_rate" in complaints[0]
    assert ended.answer["state"] == "FAILED"
    assert "Lower the optimizer's learning_rate" in ended.answer["error"]


@pytest.mark.nightly
def test_ray_starts_whatever_is_set_for_other_programs(tmp_path: Path) -> None:
    temporary = tmp_path / "日 本" / ("l" * 90)
    temporary.mkdir(parents=True)
    ended = thalweg(tmp_path, "train", "xor", "--json", RAY_TMPDIR="", TMPDIR=str(temporary), PYTHONOPTIMIZE="2")
    assert ended.code == 0, ended.stderr
    assert ended.answer["state"] == "SUCCEEDED"
    assert list(temporary.iterdir()) == []


def test_a_run_that_is_killed_leaves_nothing(tmp_path: Path, held: Barrier) -> None:
    running = Running(tmp_path, "train", "digits", **held.environment)
    running.until("2 workers")
    assert [path.name for path in running.ray.iterdir()]
    running.process.kill()
    running.end()
    running.assert_nothing_left()


@pytest.mark.nightly
def test_two_runs_at_a_time_share_one_list_of_jobs(tmp_path: Path, held: Barrier) -> None:
    """The second uses the server of the first, continues when that is interrupted, and ends with a plain loop's bits."""
    home = tmp_path / "shared"
    # Some steps into the epoch after the one that is waited for.
    held.hold(10 * 23 + 5, "digits-2")
    first = Running(home, "train", "digits", **held.environment)
    first.until("starting Ray")
    second = Running(home, "train", "digits", "--set", "training.epochs=12", "--json", **held.environment)
    second.until("epoch 10 of")
    first.interrupt()
    assert first.end().code == 130
    assert first.left_behind() == []
    held.release("digits-2")
    ended = second.end()
    assert ended.code == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert second.left_behind() == []
    assert ended.answer["weights_sha256"] == undisturbed("digits", "training.epochs=12")
    assert Path(ended.answer["weights"]).is_file()
    listed = thalweg(home, "jobs", "--json").answer["jobs"]
    assert [(job["job"], job["state"]) for job in listed] == [("digits-2", "SUCCEEDED"), ("digits-1", "CANCELLED")]
