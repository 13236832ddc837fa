"""Commands, for people and for machines, against a real server."""

import errno
import hashlib
import io
import json
import os
import signal
import stat
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import grpc
import numpy as np
import pytest
import typer
from safetensors.numpy import load_file

from tests.client.conftest import Command
from tests.client.helpers import Cluster, Printed, fleet_of_threads, names_in, start_worker
from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import running_server
from tests.end_to_end.command import thalweg
from tests.end_to_end.refusals import refusal
from thalweg.client import Client, Job, StepsTaken, load_job
from thalweg.client.cli.app import app
from thalweg.client.cli.display import Log
from thalweg.client.cli.serving import command as serving
from thalweg.client.cli.serving import running
from thalweg.contract.endpoint import Address, parse_address
from thalweg.server.process import Server
from thalweg.v1 import job_pb2, training_service_pb2, training_service_pb2_grpc

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
JOB_KEYS = {
    "job", "state", "status", "create_time", "steps", "total_steps", "epochs", "total_epochs", "workers", "wanted_workers",
    "priority", "owner", "shared", "kept", "contributions", "checkpoints", "exchange",
}  # fmt: skip
RESULT_KEYS = {"train_loss", "train_accuracy", "weights_sha256", "samples_per_second", "seconds", "start_time", "end_time"}


def test_the_commands_are_those_of_the_design() -> None:
    design = "train serve shard fleet submit jobs watch cancel delete scale weights predict plot gradcheck doctor show init data"
    operation = "share audit tokens certs web backup restore nodes cordon uncordon drain"
    assert sorted([*design.split(), *operation.split()]) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_explains_itself(name: str, option: str, command: Command) -> None:
    printed = command(name, option)
    assert printed.code == 0
    assert printed.err == ""
    assert f"Usage: thalweg {name}" in printed.out
    assert "--json" in printed.out
    assert "<bool>" not in printed.out
    assert "Examples" in printed.out


def test_where_python_removes_descriptions_help_says_so(tmp_path: Path) -> None:
    ended = thalweg(tmp_path, "train", "--help", PYTHONOPTIMIZE="2", COLUMNS="120")
    assert "PYTHONOPTIMIZE=2, or python -OO, removes descriptions" in ended.stdout


def test_a_terminal_of_no_size_is_no_reason_to_print_nothing(tmp_path: Path) -> None:
    assert "Trains a job" in thalweg(tmp_path, "--help", COLUMNS="0").stdout


def test_where_no_temporary_files_can_be_made_a_command_says_so(
    cluster: Cluster, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    problem = "No usable temporary directory found in ['/tmp']; set TMPDIR to a folder that is writable"
    assert command("predict", "gate", "--server", cluster.address) == (1, "", f"thalweg: {problem}\n")


def test_help_names_what_there_is_to_choose_from(command: Command) -> None:
    assert "Train" in command("--help").out
    words = command("submit", "--help").out
    assert "sgd, momentum, adagrad, rmsprop, adam, adamw" in words
    assert "dense, relu" in words


def test_version(command: Command) -> None:
    assert command("--version").out.startswith("thalweg ")


def test_submit(server: Server, command: Command) -> None:
    assert command("submit", "xor", "--server", server.address) == (0, "xor-1\n", "")
    printed = command("submit", "xor", "--set", "training.workers=3", "--id", "mine", "--server", server.address, "--json")
    assert printed.code == 0
    assert set(printed.json) == JOB_KEYS | {"waiting_for"}
    assert printed.json["waiting_for"] == "fleet"
    assert printed.json["job"] == "mine"
    assert printed.json["state"] == "QUEUED"
    assert printed.json["wanted_workers"] == 3
    assert printed.json["total_epochs"] == 200


def test_the_environment_names_server_and_token(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server(tmp_path / "server", token="secret") as server:
        monkeypatch.setenv("THALWEG_SERVER", str(server.address))
        assert command("submit", "xor").err.startswith("thalweg: this server requires a token")
        monkeypatch.setenv("THALWEG_TOKEN", "secret")
        assert command("submit", "xor").out == "xor-1\n"
        monkeypatch.delenv("THALWEG_TOKEN")
        Path("token").write_text("secret\n")
        assert command("jobs", "xor-1", "--token-file", "token").code == 0


def test_jobs(server: Server, client: Client, command: Command) -> None:
    assert command("jobs", "--server", server.address) == (0, "", "no jobs yet; start one with thalweg train digits\n")
    assert command("jobs", "--server", server.address, "--json").json == {"jobs": []}
    client.submit("xor", id="first").cancel()
    client.submit("or", id="second")
    printed = command("jobs", "--server", server.address)
    assert printed.code == 0
    header, second, first = printed.out.splitlines()
    assert header.split() == ["job", "state", "epochs", "loss", "validation", "workers", "began"]
    assert second.startswith("second  QUEUED: waiting for workers: no fleet is connected")
    assert "0/100" in second
    assert first.startswith("first   CANCELLED")
    listed = command("jobs", "--server", server.address, "--json").json["jobs"]
    assert [job["job"] for job in listed] == ["second", "first"]


def test_priorities_are_listed_where_there_are_any(server: Server, client: Client, command: Command) -> None:
    client.submit("xor", id="usual")
    assert "priority" not in command("jobs", "--server", server.address).out
    client.submit("or", {"priority": -3}, id="later")
    header, later, usual = command("jobs", "--server", server.address).out.splitlines()
    assert header.split()[-2:] == ["priority", "began"]
    assert "-3" in later.split()
    assert "0" in usual.split()
    listed = command("jobs", "--server", server.address, "--json").json["jobs"]
    assert [job["priority"] for job in listed] == [-3, 0]


def test_a_job_that_ended_is_listed_with_its_result(cluster: Cluster, command: Command) -> None:
    (job,) = command("jobs", "digits", "--server", cluster.address, "--json").json["jobs"]
    assert set(job) == JOB_KEYS | RESULT_KEYS | {"validation"}
    result = cluster.digits.result()
    assert result.validation
    assert job["validation"] == {"loss": result.validation.loss, "accuracy": result.validation.accuracy}
    assert job["weights_sha256"] == result.weights_sha256
    assert (job["steps"], job["total_steps"], job["epochs"]) == (69, 69, 3)
    assert job["contributions"].keys() == set(job_pb2.Contributions.DESCRIPTOR.fields_by_name)
    assert job["checkpoints"].keys() == set(job_pb2.Checkpoints.DESCRIPTOR.fields_by_name)
    assert job["exchange"].keys() == set(job_pb2.Exchange.DESCRIPTOR.fields_by_name)
    words = command("jobs", "digits", "--server", cluster.address).out
    assert "SUCCEEDED" in words
    assert f"{result.validation.accuracy:.1%}".replace("%", " %") in words


def test_watch(cluster: Cluster, command: Command) -> None:
    printed = command("watch", "digits", "--server", cluster.address)
    assert printed.code == 0
    assert printed.out.startswith("digits succeeded: 69 steps, validation ")
    assert [line for line in printed.err.splitlines() if ": epoch 3 of 3: loss " in line]
    events = [json.loads(line) for line in command("watch", "digits", "--server", cluster.address, "--json").out.splitlines()]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert {event["event"] for event in events} == {"state_changed", "workers_changed", "steps_taken", "epoch_ended"}
    assert events[-1]["state"] == "SUCCEEDED"
    (steps,) = {tuple(event["progress"]) for event in events if event["event"] == "steps_taken"}
    assert {"contributions", "checkpoints", "exchange"} <= set(steps)
    last = [event for event in events if event["event"] == "epoch_ended"][-1]
    assert last["validation"]["accuracy"] == cluster.digits.result().validation.accuracy  # type: ignore[union-attr]
    behind = command("watch", "digits", "--server", cluster.address, "--json", "--after", len(events) - 1).json
    assert behind == events[-1]


def test_watch_tells_by_its_exit_code_that_a_job_did_not_succeed(server: Server, client: Client, command: Command) -> None:
    client.submit("xor", id="mine").cancel()
    for option in ([], ["--json"]):
        printed = command("watch", "mine", "--server", server.address, *option)
        assert printed.code == 1
        assert printed.err.splitlines()[-1] == "thalweg: job mine was cancelled"


def test_scale_cancel_and_delete(server: Server, client: Client, command: Command) -> None:
    client.submit("xor", id="mine")
    note = "thalweg: no fleet is connected to this server; workers start when one does\n"
    assert command("scale", "mine", 1, "--server", server.address) == (0, "mine wants 1 worker\n", note)
    paused = command("scale", "mine", 0, "--server", server.address)
    assert paused == (0, "mine is paused; scale it again to go on\n", "")
    listed = command("jobs", "mine", "--server", server.address, "--json").json["jobs"][0]
    assert listed["waiting_for"] == "scaling"
    assert listed["status"] == "paused; `thalweg scale mine N` resumes it with N workers"
    assert command("scale", "mine", 7, "--server", server.address, "--json").json["wanted_workers"] == 7
    words = "mine has priority -3, and wants 2 workers\n"
    assert command("scale", "mine", 2, "--priority", -3, "--server", server.address) == (0, words, note)
    raised = command("scale", "mine", "--priority", 4, "--server", server.address, "--json").json
    assert (raised["priority"], raised["wanted_workers"]) == (4, 2)
    assert "give a number of workers, or --priority" in command("scale", "mine", "--server", server.address).err
    assert command("cancel", "mine", "--server", server.address) == (0, "mine cancelled\n", "")
    assert command("cancel", "mine", "--server", server.address, "--json").json["state"] == "CANCELLED"
    assert command("delete", "mine", "--server", server.address) == (0, "mine deleted\n", "")
    client.submit("xor", id="mine").cancel()
    assert command("delete", "mine", "--server", server.address, "--json").json == {"job": "mine", "deleted": True}
    assert client.jobs() == []


def test_delete_asks_on_a_terminal(
    server: Server, client: Client, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        client.submit("xor", id=name).cancel()

    def answer(text: str) -> Printed:
        stdin = io.StringIO(text)
        monkeypatch.setattr(stdin, "isatty", lambda: True)
        monkeypatch.setattr("sys.stdin", stdin)
        return command("delete", "first", "second", "--server", server.address)

    refused = answer("n\n")
    assert refused.code == 130
    assert refused.err.startswith(f"From the server at {server.address}:\n  first, cancelled, begun")
    assert len(client.jobs()) == 2
    assert answer("y\n").out.lstrip() == "first deleted\nsecond deleted\n"
    assert client.jobs() == []


def test_a_jobs_result_is_kept(server: Server, client: Client, command: Command) -> None:
    here = ("--server", server.address)
    client.submit("xor", id="mine")
    assert command("jobs", "keep", "mine", *here) == (0, "mine: its result is kept for good\n", "")
    assert command("jobs", "mine", *here, "--json").json["jobs"][0]["kept"]
    assert not command("jobs", "release", "mine", *here, "--json").json["kept"]
    assert command("jobs", "keep", *here).err == "thalweg: there is no job keep on this server\n"
    assert command("jobs", "keep", "a", "b", *here).code == 2


def test_the_story_of_a_job(server: Server, client: Client, command: Command) -> None:
    client.submit("xor", id="mine").cancel()
    here = ("--server", server.address)
    printed = command("jobs", "story", "mine", *here)
    assert (printed.code, printed.err) == (0, "")
    told = [line.split(None, 2)[2] for line in printed.out.splitlines()]
    assert told[0].startswith("lifecycle    Accepted(ask=")
    assert told[0].endswith(", RECORDED → STARTING")
    assert any(line.startswith("coordinator  CancelRequested") for line in told)
    assert any(line.endswith("RecordEnd") for line in told)
    answer = command("jobs", "story", "mine", *here, "--json").json
    assert answer["job"] == "mine"
    story = client.job("mine").story()
    assert [entry["text"] for entry in answer["story"]] == [entry.text for entry in story]
    assert [entry.time for entry in story] == sorted(entry.time for entry in story)
    # It takes the place of no job's name.
    client.submit("xor", id="story").cancel()
    assert command("jobs", "story", *here, "--json").json["jobs"][0]["job"] == "story"
    assert command("jobs", "story", "story", *here, "--json").json["job"] == "story"
    assert command("jobs", "mine", *here, "--json").json["jobs"][0]["job"] == "mine"
    wrong = command("jobs", "mine", "story", *here)
    assert (wrong.code, wrong.err) == (2, "thalweg: JOB: expected JOB, story JOB, keep JOB or release JOB, not mine story\n")
    missing = command("jobs", "story", "nothing", *here)
    assert missing.code != 0
    assert "nothing" in missing.err


def test_a_story_is_forgotten_with_its_server(tmp_path: Path, command: Command) -> None:
    for _ in range(2):
        with running_server(tmp_path / "kept") as server, Client(server.address) as client:
            if not client.jobs():
                client.submit("xor", id="mine").cancel()
                assert client.job("mine").story()
                continue
            assert client.job("mine").story() == []
            words = "thalweg: the server has no story of mine: the job ended before the server started, or too long ago\n"
            assert command("jobs", "story", "mine", "--server", server.address) == (0, "", words)
            # A job that goes on has one again.
            client.job("mine").resume()
            assert client.job("mine").story()[0].text.startswith("ResumeRequested")


def test_jobs_are_filtered(server: Server, client: Client, command: Command) -> None:
    for name in ("old", "new"):
        client.submit("xor", id=name).cancel()
    client.submit("xor", id="waits")

    def listed(*options: object) -> list[str]:
        return [job["job"] for job in command("jobs", "--server", server.address, "--json", *options).json["jobs"]]

    assert listed() == ["waits", "new", "old"]
    assert listed("--state", "cancelled") == ["new", "old"]
    assert listed("--state", "CANCELLED", "--state", "queued") == ["waits", "new", "old"]
    assert listed("--state", "cancelled", "--limit", 1) == ["new"]
    assert command("jobs", "--server", server.address, "--state", "failed").err == "no such jobs\n"
    wrong = command("jobs", "--server", server.address, "--state", "done")
    assert (wrong.code, wrong.err.partition(";")[0]) == (2, "thalweg: --state: unknown state 'done'")


def test_ids_are_whole_on_a_narrow_terminal(
    server: Server, client: Client, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a-job-of-somebody-with-a-long-name"
    client.submit("xor", id=name)
    monkeypatch.setattr("thalweg.client.cli.output._ENDLESS", 50)
    assert name in command("jobs", "--server", server.address).out


def test_show_prints_a_job_file_that_trains_the_same(cluster: Cluster, command: Command) -> None:
    for job in (cluster.gate, cluster.digits):
        printed = command("show", job.id, "--server", cluster.address)
        assert (printed.code, printed.err) == (0, "")
        Path("again.toml").write_text(printed.out)
        assert load_job("again.toml").spec == job.spec
    assert command("show", "gate", "--server", cluster.address, "--json").json["settings"]["training"]["epochs"] == 40
    assert tomllib.loads(command("show", "digits").out)["training"]["epochs"] == 30
    assert command("show", "nothing", "--server", cluster.address).err == "thalweg: there is no job nothing on this server\n"


def test_init_writes_a_job_file_to_begin_from(command: Command, tmp_path: Path) -> None:
    assert command("init").out == f"{tmp_path}/digits.toml: train it with `thalweg train digits.toml`\n"
    assert command("init", "-o", "a job.toml").out == f"{tmp_path}/a job.toml: train it with `thalweg train 'a job.toml'`\n"
    assert load_job("digits.toml") == load_job("digits")
    again = command("init")
    assert (again.code, again.err) == (
        2,
        f"thalweg: --output: {tmp_path}/digits.toml exists; choose another file, or overwrite it with --force\n",
    )
    assert command("init", "xor", "-o", "digits.toml", "--force", "--json").json == {
        "job": "xor",
        "file": f"{tmp_path}/digits.toml",
    }
    assert load_job("digits.toml") == load_job("xor")
    assert command("init", "mnist").err.startswith("thalweg: JOB: unknown packaged job 'mnist'; expected one of and, digits")


def test_weights(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    printed = command("weights", "gate", "--server", cluster.address)
    assert printed == (0, f"{tmp_path}/gate.safetensors: the parameters after 40 steps\n", "")
    assert set(load_file("gate.safetensors")) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    answer = command("weights", "gate", "-o", "w.safetensors", "--server", cluster.address, "--json").json
    sha256 = cluster.gate.result().weights_sha256
    assert answer == {"job": "gate", "weights": f"{tmp_path}/w.safetensors", "weights_sha256": sha256, "version": 40}
    assert names_in(tmp_path) == ["gate.safetensors", "w.safetensors"]


def test_the_weights_of_a_running_job_are_those_of_its_last_step(
    server: Server, client: Client, command: Command, barrier: Barrier
) -> None:
    barrier.hold(3)
    job = client.submit("xor", id="mine")
    worker = start_worker(server.address, "mine")
    next(event for event in job.watch() if isinstance(event, StepsTaken))
    printed = command("weights", "mine", "--server", server.address, "--json")
    assert printed.code == 0
    assert printed.json["version"] > 0
    job.cancel()
    barrier.release()
    worker.join()


@contextmanager
def stream_of(content: bytes) -> Iterator[int]:
    """The end of a pipe at which content can be read."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:
        file.write(content)
    yield reader
    os.close(reader)


def array_file(values: list[list[int]]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize("content", [b"a,b\n0,0\n1,0\n", array_file([[0, 0], [1, 0]])], ids=["table", "array"])
@pytest.mark.parametrize("name", ["-", "/dev/fd/{}"])
def test_predict_reads_standard_input_and_pipes(
    name: str, content: bytes, cluster: Cluster, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `command | thalweg predict JOB -`, and in `thalweg predict JOB <(command)`."""
    with stream_of(content) as reader, os.fdopen(os.dup(reader)) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        printed = command("predict", "gate", name.format(reader), "--server", cluster.address)
    assert (printed.code, printed.out) == (0, "0\n1\n")


def test_what_is_wrong_with_a_stream_is_told(cluster: Cluster, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with stream_of(b"a,b\n0,x\n") as reader, os.fdopen(os.dup(reader)) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        printed = command("predict", "gate", "-", "--server", cluster.address)
    assert (printed.code, printed.out) == (2, "")
    assert printed.err.startswith("thalweg: INPUT: line 2, column 'b': 'x' is not a number; ")
    monkeypatch.setattr("sys.stdin", None)
    printed = command("predict", "gate", "-", "--server", cluster.address)
    assert printed == (2, "", "thalweg: INPUT: standard input is closed; give the path of a file\n")


def test_a_token_is_read_from_a_pipe(cluster: Cluster, command: Command) -> None:
    with stream_of(b"a-token\n") as reader:
        assert command("jobs", "--json", "--server", cluster.address, "--token-file", f"/dev/fd/{reader}").code == 0


def test_predict(cluster: Cluster, command: Command) -> None:
    np.save("x.npy", [[0, 0], [0, 1], [1, 0], [1, 1]])
    assert command("predict", "gate", "x.npy", "--server", cluster.address) == (0, "0\n1\n1\n0\n", "")
    answer = command("predict", "gate", "x.npy", "--server", cluster.address, "--json").json
    assert answer["job"] == "gate"
    assert answer["classes"] == [0, 1, 1, 0]
    assert [round(sum(row), 6) for row in answer["probabilities"]] == [1, 1, 1, 1]
    assert [row[1] > 0.5 for row in answer["probabilities"]] == [False, True, True, False]
    assert answer["outputs"] == cluster.gate.predict(np.load("x.npy")).tolist()


def test_predict_without_a_file_takes_the_jobs_own_samples(cluster: Cluster, command: Command) -> None:
    # The gate has no validation samples: those that it was trained on.
    assert command("predict", "gate", "--server", cluster.address) == (0, "0\n1\n1\n0\n", "")
    answer = command("predict", "digits", "--server", cluster.address, "--json").json
    validation = cluster.digits.result().validation
    assert validation
    right = [a == b for a, b in zip(answer["classes"], answer["targets"], strict=True)]
    assert len(right) == 359
    assert sum(right) / len(right) == pytest.approx(validation.accuracy)
    lines = command("predict", "digits", "--server", cluster.address).out.splitlines()
    assert [" (target " not in line for line in lines] == right
    assert [line.split()[0] for line in lines] == [str(each) for each in answer["classes"]]


@pytest.mark.parametrize("ending", [".npy", ".npz", ".csv"])
def test_predict_writes_outputs(ending: str, cluster: Cluster, command: Command) -> None:
    np.save("x.npy", [[0, 0], [0, 1]])
    printed = command("predict", "gate", "x.npy", "-o", f"out{ending}", "--server", cluster.address)
    assert printed == (0, f"out{ending}: outputs for 2 samples\n", "")
    expected = cluster.gate.predict([[0, 0], [0, 1]])
    match ending:
        case ".npy":
            assert np.array_equal(np.load("out.npy"), expected)
        case ".npz":
            assert np.array_equal(np.load("out.npz")["outputs"], expected)
        case _:
            assert [line.split(",")[0] for line in Path("out.csv").read_text().splitlines()] == ["class", "0", "1"]


TABLE = "a,b,label\n" + "".join(f"{a / 8},{b / 8},{int(a > b)}\n" for a in range(-8, 9) for b in range(-7, 9))


def test_predict_finds_columns_by_their_names(cluster: Cluster, command: Command) -> None:
    Path("table.csv").write_text(TABLE)
    layers = [{"dense": {"units": 2}}]
    settings = {"data.csv": "table.csv", "model.layers": layers, "model.loss": "softmax_cross_entropy", "training.epochs": 20}
    job = cluster.client.submit("xor", settings)
    job.wait()

    def predict(text: str, *options: str) -> Printed:
        Path("new.csv").write_text(text)
        return command("predict", job.id, "new.csv", *options, "--server", cluster.address)

    for text in ("a,b\n0.9,-0.9\n-0.9,0.9\n", "b,a\n-0.9,0.9\n0.9,-0.9\n", "label,b,a\n7,-0.9,0.9\n7,0.9,-0.9\n"):
        assert predict(text) == (0, "1\n0\n", "")
    notice = "thalweg: new.csv: the columns were assumed to be in the order of the training data: 'a', 'b'\n"
    assert predict("0.9,-0.9\n-0.9,0.9\n", "--no-header") == (0, "1\n0\n", notice)
    for text, message in (
        (
            "id,a,b\n1,0.9,-0.9\n",
            "has the column 'id', which the job was not trained on; remove the columns that are not features: 'a', 'b'",
        ),
        (
            "a,c\n0.9,-0.9\n",
            "lacks the column 'b' and has the column 'c', which the job was not trained on; name the columns as in",
        ),
    ):
        printed = predict(text)
        assert (printed.code, printed.out) == (2, "")
        assert printed.err.startswith(f"thalweg: INPUT: 'new.csv' {message}")
    assert predict("0.9,-0.9\n").err.startswith(
        "thalweg: INPUT: 'new.csv' begins with numbers, but must begin with a line of column"
    )


def test_predict_for_a_job_whose_table_has_no_names(cluster: Cluster, command: Command) -> None:
    Path("table.csv").write_text(TABLE.partition("\n")[2])
    layers = [{"dense": {"units": 2}}]
    settings = {"data.csv": "table.csv", "data.header": False, "model.layers": layers, "model.loss": "softmax_cross_entropy"}
    job = cluster.client.submit("xor", settings | {"training.epochs": 20})
    job.wait()
    Path("new.csv").write_text("0.9,-0.9\n-0.9,0.9\n0.9,-0.9\n")
    assert command("predict", job.id, "new.csv", "--server", cluster.address) == (0, "1\n0\n1\n", "")


def test_plot(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    assert command("plot", "digits", "--server", cluster.address) == (0, f"{tmp_path}/digits.png\n", "")
    assert Path("digits.png").read_bytes().startswith(b"\x89PNG")
    answer = command("plot", "gate", "--slice", "2.weight[0, 3]", "-o", "slice.svg", "--server", cluster.address, "--json").json
    assert answer == {"job": "gate", "picture": f"{tmp_path}/slice.svg"}
    assert ElementTree.parse("slice.svg").getroot().tag.endswith("svg")
    assert command("plot", "gate", "--slice", "0.bias[1]", "--server", cluster.address).out == f"{tmp_path}/gate-0.bias-1.png\n"
    # matplotlib keeps its fonts in the home.
    assert [name for name in names_in(tmp_path) if name != "home"] == ["digits.png", "gate-0.bias-1.png", "slice.svg"]


def test_gradcheck(command: Command) -> None:
    printed = command("gradcheck", "xor")
    assert printed.code == 0
    assert printed.err == ""
    rows = [line.split() for line in printed.out.splitlines()]
    assert rows[0] == ["tensor", "shape", "checked", "absolute", "error", "relative", "error"]
    assert [(row[0], row[-1]) for row in rows[1:]] == [(name, "passed") for name in ("2.weight", "2.bias", "0.weight", "0.bias")]
    answer = command("gradcheck", "xor", "--set", "model.layers[0].dense.units=3", "--json").json
    assert answer["passed"] is True
    assert [(row["tensor"], row["shape"], row["checked"]) for row in answer["tensors"]] == [
        ("2.weight", [1, 3], 3),
        ("2.bias", [1], 1),
        ("0.weight", [3, 2], 6),
        ("0.bias", [3], 3),
    ]
    assert all(row["passed"] and row["relative_error"] < 1e-6 for row in answer["tensors"])


def test_gradcheck_of_a_wrong_gradient_fails(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from thalweg.learning.sequential.layers.tanh import Tanh

    monkeypatch.setattr(Tanh, "backward", lambda self, gradient, *_: gradient)
    printed = command("gradcheck", "xor", "--json")
    assert printed.code == 1
    assert printed.json["passed"] is False
    assert [row["tensor"] for row in printed.json["tensors"] if not row["passed"]] == ["0.weight", "0.bias"]
    assert printed.err == "thalweg: backpropagation differs from numerical differentiation in 2 tensors\n"


def test_gradcheck_needs_no_server_to_start_from_its_parameters(command: Command) -> None:
    assert command("gradcheck", "xor", "--set", "model.initial.job=xor-1", "--json").json["passed"] is True


def test_gradcheck_reads_the_jobs_own_file(command: Command) -> None:
    np.savez("a.npz", x=np.random.default_rng(0).normal(size=(20, 3)), y=np.arange(20) % 2)
    assert command("gradcheck", "xor", "--set", "data.npz=a.npz", "--json").json["tensors"][2]["shape"] == [8, 3]


def test_the_jobs_of_a_folder_are_found_while_a_server_runs_on_it_and_while_none_does(tmp_path: Path, command: Command) -> None:
    with running_server(tmp_path / "kept") as server, Client(server.address) as client:
        client.submit("xor", id="mine").cancel()
        assert command("jobs", "mine", "--data", "kept", "--json").json["jobs"][0]["state"] == "CANCELLED"
    assert command("jobs", "mine", "--data", "kept", "--json").json["jobs"][0]["state"] == "CANCELLED"


def test_this_machines_own_jobs_are_looked_for_in_the_usual_folder(tmp_path: Path, command: Command) -> None:
    assert command("jobs", "--json").json == {"jobs": []}
    folder = tmp_path / "home" / "data" / "thalweg" / "embedded"
    assert (folder / "token").stat().st_mode & 0o777 == 0o600


def test_train_on_a_server(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    printed = command("train", "digits", "--set", "training.epochs=2", "--server", cluster.address, "--json")
    assert printed.code == 0
    answer = printed.json
    assert set(answer) == {
        "job", "state", "steps", "epochs", "train_loss", "train_accuracy", "validation", "weights", "weights_sha256",
        "samples_per_second", "seconds",
    }  # fmt: skip
    assert set(answer["validation"]) == {"loss", "accuracy"}
    assert (answer["state"], answer["steps"], answer["epochs"]) == ("SUCCEEDED", 46, 2)
    assert answer["weights"] == f"{tmp_path}/{answer['job']}.safetensors"
    assert len(load_file(answer["weights"])) == 4
    assert "epoch 2 of 2: loss" in printed.err


def test_train_without_validation_and_classes(cluster: Cluster, command: Command) -> None:
    settings = ["--set", "model.loss=mean_squared_error", "--set", "training.epochs=2"]
    answer = command("train", "xor", *settings, "--weights", "w.safetensors", "--server", cluster.address, "--json").json
    assert "validation" not in answer
    assert "train_accuracy" not in answer
    assert answer["weights"].endswith("/w.safetensors")


def test_train_for_people(cluster: Cluster, command: Command) -> None:
    printed = command("train", "xor", "--set", "training.epochs=3", "--server", cluster.address)
    assert printed.code == 0
    lines = printed.out.splitlines()
    assert " succeeded: 3 epochs, 3 steps in " in lines[0]
    assert [line.split()[0] for line in lines[1:5]] == ["loss", "training", "weights", "sha256"]
    assert f"--server {cluster.address}" in lines[-1]


def test_train_tells_a_job_that_fails(cluster: Cluster, command: Command) -> None:
    np.savez("bad.npz", x=[[1.0], [np.nan]], y=[0, 1])
    printed = command("train", "xor", "--set", "data.npz=bad.npz", "--server", cluster.address, "--json")
    assert printed.code == 1
    assert printed.json["state"] == "FAILED"
    assert printed.json["error"].startswith("data.npz: x holds NaN")
    assert "weights" not in printed.json
    assert printed.err.splitlines()[-1].startswith(f"thalweg: job {printed.json['job']} failed: data.npz: x holds NaN")


def interrupt(*_: object) -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def test_train_ends_the_job_on_ctrl_c_and_keeps_what_was_learnt(
    server: Server, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, barrier: Barrier
) -> None:
    barrier.hold(3)
    monkeypatch.setattr(Log, "show", lambda _, event: interrupt() if isinstance(event, StepsTaken) else None)
    with fleet_of_threads(server):
        printed = command("train", "xor", "--server", server.address, "--json")
    assert printed.code == 130
    assert printed.json["state"] == "CANCELLED"
    assert printed.json["steps"] > 0
    assert printed.json["weights"] == f"{tmp_path}/xor-1.safetensors"
    assert len(load_file("xor-1.safetensors")) == 4
    assert "thalweg: job xor-1 was interrupted after " in printed.err
    assert "thalweg: the parameters so far are in " in printed.err
    assert printed.err.splitlines()[-1] == f"thalweg: to resume: thalweg train --resume xor-1 --server {server.address}"


def test_train_does_not_wait_after_a_second_ctrl_c(
    server: Server, client: Client, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()

    def cancel(_: Job) -> None:
        interrupt()
        done.wait()

    monkeypatch.setattr(Log, "show", interrupt)
    monkeypatch.setattr(Job, "cancel", cancel)
    printed = command("train", "xor", "--server", server.address)
    done.set()
    assert printed.code == 130
    assert printed.err.splitlines()[-2:] == [
        "thalweg: interrupted again; the parameters so far were not written",
        f"thalweg: to resume: thalweg train --resume xor-1 --server {server.address}",
    ]
    assert client.job("xor-1").state == "QUEUED"


def test_watch_leaves_the_job_running_on_ctrl_c(
    client: Client, server: Server, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = client.submit("xor", id="mine")
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("thalweg.client.cli.jobs.print_json", interrupt)
    assert command("watch", "mine", "--server", server.address, "--json").code == 130
    assert job.state == "QUEUED"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve(number: signal.Signals, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announce = running.announce

    def announced(facts: dict[str, str], words: str, json: bool) -> None:
        announce(facts, words, json)
        with Client(facts["address"], "secret") as client:
            assert client.submit("xor").id == "xor-1"
            assert client.server_info().max_running_jobs == 3
        os.kill(os.getpid(), number)

    monkeypatch.setattr(serving, "announce", announced)
    Path("token").write_text("secret")
    arguments = ("--address", "127.0.0.1:0", "--data", "kept", "--token-file", "token", "--max-running", "3")
    printed = command("serve", *arguments, "--json")
    assert printed.code == 0
    assert set(printed.json) == {"address", "data"}
    assert printed.json["data"] == f"{tmp_path}/kept"
    assert command("jobs", "--data", "kept", "--json").json["jobs"][0]["job"] == "xor-1"


def _serving(monkeypatch: pytest.MonkeyPatch, look: Callable[[Address], object]) -> None:
    """Looks at a server that a command runs, then ends it."""
    announce = running.announce

    def announced(facts: dict[str, str], words: str, json: bool) -> None:
        announce(facts, words, json)
        look(parse_address(facts["address"]))
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(serving, "announce", announced)


@pytest.mark.parametrize(
    ("option", "kept"), [((), ["new"]), (("--keep-uploads", "12h"), []), (("--keep-uploads", "30d"), ["new", "old"])]
)
def test_uploads_are_kept_as_long_as_the_operator_says(
    option: tuple[str, ...], kept: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ages = {"new": 13, "old": 25}
    files = {name: tmp_path / "kept" / "uploads" / hashlib.sha256(name.encode()).hexdigest() for name in ages}
    next(iter(files.values())).parent.mkdir(parents=True)
    for name, path in files.items():
        path.write_text(name)
        then = time.time() - ages[name] * 3600
        os.utime(path, (then, then))
    _serving(monkeypatch, lambda _: None)
    assert command("serve", "--address", "127.0.0.1:0", "--data", "kept", *option).code == 0
    assert [name for name, path in files.items() if path.exists()] == kept


def _of_another_user(address: Address) -> str:
    """What a call is answered that carries no token: what another user of this machine would see."""
    with grpc.insecure_channel(str(address)) as channel:
        stub = training_service_pb2_grpc.TrainingServiceStub(channel)
        return refusal(lambda: stub.ListJobs(training_service_pb2.ListJobsRequest(), timeout=30)).reason


def test_a_server_on_loopback_lets_in_its_own_user(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[str] = []

    def look(address: Address) -> None:
        for name in (str(address), f"localhost:{address.port}"):
            with Client(name) as client:
                assert len(client.jobs()) == len(tokens)
        # A token that is meant for another server does no harm.
        with Client(address, "of another server") as client:
            job = client.submit("xor", {"training.epochs": 1})
            with fleet_of_threads(client):
                assert job.wait().state == "SUCCEEDED"
        assert _of_another_user(address) == "UNAUTHENTICATED"
        path = Path("kept/server-token")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        tokens.append(path.read_text())

    _serving(monkeypatch, look)
    for _ in range(2):
        assert command("serve", "--address", "127.0.0.1:0", "--data", "kept").code == 0
    # Fleets and workers that outlive the server's process go on with what they know.
    assert tokens[0] == tokens[1]
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in Path("kept").rglob("*")} == {0}


def test_a_server_that_trusts_the_network_asks_nobody(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    _serving(monkeypatch, lambda address: Client(address).jobs() and None)
    assert command("serve", "--address", "127.0.0.1:0", "--data", "kept", "--trust-network").code == 0
    assert not Path("kept/server-token").exists()


def test_a_server_whose_user_has_no_home_says_where_the_token_is(
    command: Command, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def look(address: Address) -> None:
        with Client(address, Path("kept/server-token").read_text()) as client:
            assert client.jobs() == []

    Path("file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", "file/below")
    _serving(monkeypatch, look)
    assert command("serve", "--address", "127.0.0.1:0", "--data", "kept").code == 0
    assert "kept/server-token" in caplog.text


def test_a_token_that_others_may_read_is_a_warning(cluster: Cluster, command: Command) -> None:
    token = Path("token")
    token.write_text("secret")
    token.chmod(0o644)
    printed = command("jobs", "--server", cluster.address, "--token-file", "token")
    assert printed.code == 0
    assert printed.err == "thalweg: --token-file: token is open to other users (mode 644): chmod 600 token\n"
    token.chmod(0o600)
    assert command("jobs", "--server", cluster.address, "--token-file", "token").err == ""
