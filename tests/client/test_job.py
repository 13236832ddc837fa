"""Jobs and clients against a real server."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.client.helpers import NOWHERE, Cluster, start_worker
from tests.client.test_transfer import Tensor
from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import ThreadFleet, running_server
from tests.end_to_end.command import wait_for
from tests.learning.batches import schema
from thalweg.client import (
    Client,
    EpochEnded,
    JobFailedError,
    LocalError,
    StateChanged,
    StepsTaken,
    ThalwegError,
    WorkersChanged,
    load_job,
)
from thalweg.client.errors import JobFileError
from thalweg.client.models import predict
from thalweg.contract import layout as layouts
from thalweg.contract.errors import Violation
from thalweg.contract.layout import Slab
from thalweg.learning import data
from thalweg.learning.batch import Batch
from thalweg.learning.objective import Outputs
from thalweg.learning.sequential.model import Sequential
from thalweg.server.process import Server
from thalweg.server.storage.journal import Journal


def test_a_job_without_workers_waits_and_says_so(client: Client) -> None:
    job = client.submit("xor", name="waiting")
    assert job.id == "waiting-1"
    assert job.state == "QUEUED"
    assert job.message.status.startswith("waiting for workers: no fleet is connected to this server")
    assert job.progress.step == 0
    assert job.progress.loss is None
    assert repr(job) == "Job('waiting-1', QUEUED)"


def test_a_job_runs_by_itself_where_a_fleet_attends(cluster: Cluster) -> None:
    job = cluster.client.submit("xor", {"training.epochs": 3})
    result = job.wait()
    assert (result.job, result.state, result.steps, result.epochs) == (job.id, "SUCCEEDED", 3, 3)
    assert result == job.result() == job.last_result()
    assert result.train
    assert result.validation is None
    assert len(result.weights_sha256) == 64
    assert job.progress.total_steps == 3


def test_a_job_is_tested_with_samples_that_it_never_saw(cluster: Cluster, tmp_path: Path) -> None:
    rows = [f"{row},{row % 7},{3 * row - row % 7}" for row in range(60)]
    for name, lines in (("train", rows[:40]), ("test", rows[40:])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["a,b,y", *lines]) + "\n")
    job = {
        "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error", "dtype": "float64"},
        "data": {
            "csv": str(tmp_path / "train.csv"),
            "standardize": True,
            "validation": {"fraction": 0.25, "time": "a"},
            "test": {"file": str(tmp_path / "test.csv")},
        },
        "optimizer": {"adam": {"learning_rate": 0.1}},
        "training": {"epochs": 3},
    }
    trained = cluster.client.submit(job)
    result = trained.wait()
    assert result.test
    assert result.validation
    x = np.array([[float(cell) for cell in row.split(",")] for row in rows])
    for metrics, part in ((result.test, x[40:]), (result.validation, x[30:40])):
        outputs = trained.predict(part[:, :2])[:, 0]
        assert metrics.loss == pytest.approx(np.mean((outputs - part[:, 2]) ** 2), rel=1e-12)


def test_a_layer_of_another_job_stays_as_it_was_learnt(cluster: Cluster) -> None:
    """A job that begins with another one's parameters, and freezes some of them."""
    settings = {"training.epochs": 3, "model.initial.job": cluster.gate.id}
    frozen = {"optimizer.groups": [{"pattern": "0.*", "frozen": True}]}
    jobs = [cluster.gate, *(cluster.client.submit("xor", settings | more) for more in ({}, frozen))]
    for job in jobs:
        job.wait()
    learnt, free, tuned = (job.parameters() for job in jobs)
    for name in learnt:
        same = np.array_equal(learnt[name], tuned[name])
        assert same == name.startswith("0.")
        assert not np.array_equal(learnt[name], free[name])


def test_equal_jobs_end_with_equal_parameters(cluster: Cluster) -> None:
    again = cluster.client.submit(cluster.gate.spec)
    assert again.wait().weights_sha256 == cluster.gate.result().weights_sha256


def test_jobs_are_listed_over_all_pages_the_newest_first(client: Client) -> None:
    ids = [client.submit("xor", name="page").id for _ in range(53)]
    assert [job.id for job in client.jobs()] == ids[::-1]


def test_a_request_id_makes_submitting_safe_to_repeat(client: Client) -> None:
    first = client.submit("xor", request_id="once")
    second = client.submit("xor", request_id="once")
    assert first.id == second.id
    assert len(client.jobs()) == 1
    assert client.submit("xor").id != first.id


def test_a_taken_id_is_told(client: Client) -> None:
    client.submit("xor", id="mine")
    with pytest.raises(ThalwegError) as caught:
        client.submit("and", id="mine")
    assert caught.value.reason == "JOB_EXISTS"
    assert str(caught.value) == "job mine already exists; choose another id, or give none"


@pytest.mark.parametrize("method", ["cancel", "delete", "parameters", "trajectory", "history", "wait", "refresh"])
def test_a_job_that_is_gone_is_told(client: Client, method: str) -> None:
    job = client.submit("xor", id="gone")
    gone = client.job("gone")
    job.cancel()
    job.delete()
    with pytest.raises(ThalwegError) as caught:
        getattr(gone, method)()
    assert caught.value.reason == "JOB_NOT_FOUND"
    assert str(caught.value) == "there is no job gone on this server"


def test_a_job_that_never_was_is_told(client: Client) -> None:
    with pytest.raises(ThalwegError, match="there is no job nope on this server"):
        client.job("nope")


def test_a_cancelled_job_keeps_what_was_learnt(server: Server, client: Client, barrier: Barrier) -> None:
    barrier.hold(3)
    job = client.submit("xor")
    worker = start_worker(server.address, job.id)
    next(event for event in job.watch() if isinstance(event, StepsTaken))
    assert job.cancel() == "CANCELLED"
    barrier.release()
    worker.join()
    result = job.wait()
    assert result.state == "CANCELLED"
    assert result.steps > 0
    assert result.train is None
    header, slab = job.slab()
    assert header.version == result.steps
    assert layouts.digest(slab) == result.weights_sha256
    assert job.cancel() == "CANCELLED"


def test_a_job_must_have_ended_before_it_is_deleted(client: Client) -> None:
    job = client.submit("xor")
    with pytest.raises(ThalwegError, match="has not ended yet; cancel it first"):
        job.delete()
    job.cancel()
    job.delete()
    assert client.jobs() == []


def test_scaling_changes_what_is_wanted_and_not_what_is_learnt(cluster: Cluster, barrier: Barrier) -> None:
    barrier.hold(3)
    job = cluster.client.submit("xor", {"training.epochs": 20, "training.workers": 1})
    job.scale(2)
    assert job.spec.training.workers == 2
    barrier.release()
    one = cluster.client.submit("xor", {"training.epochs": 20, "training.workers": 1})
    assert job.wait().weights_sha256 == one.wait().weights_sha256
    with pytest.raises(ThalwegError, match="has ended"):
        job.scale(3)


def test_a_priority_is_changed_alone(client: Client) -> None:
    job = client.submit("xor", {"training.workers": 3})
    job.scale(priority=8)
    assert (job.spec.priority, job.spec.training.workers) == (8, 3)
    with pytest.raises(ValueError, match="workers, a priority, or both"):
        job.scale()
    job.cancel()


def test_scaling_to_nothing_pauses_a_job(client: Client) -> None:
    job = client.submit("xor")
    job.scale(0)
    assert job.message.paused
    assert "paused" in job.message.status
    job.scale(1)
    assert not job.message.paused


def test_a_job_without_parameters_says_so(client: Client) -> None:
    job = client.submit("xor")
    with pytest.raises(ThalwegError) as caught:
        job.parameters()
    assert caught.value.reason == "NO_PARAMETERS"
    with pytest.raises(ThalwegError, match="has not ended yet"):
        job.trajectory()
    job.cancel()
    with pytest.raises(ThalwegError, match="has no trajectory"):
        job.trajectory()


def test_a_job_that_failed_raises_where_it_is_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=[[1.0], [np.nan]], y=[0, 1])
    job = cluster.client.submit("xor", {"data.npz": "bad.npz"})
    with pytest.raises(JobFailedError) as caught:
        job.wait()
    assert str(caught.value).startswith(f"job {job.id} failed: data.npz: x holds NaN or infinite values, 1 in all")
    assert job.result().state == "FAILED"
    assert job.result().weights_sha256 == ""


@pytest.mark.parametrize("which", ["gate", "digits"])
def test_predictions_are_the_model_evaluated_directly(which: str, cluster: Cluster) -> None:
    job = {"gate": cluster.gate, "digits": cluster.digits}[which]
    x, y, *_ = data.read(job.spec.data, lambda _: Path())
    header, slab = job.slab()
    model = Sequential(job.spec, schema(x.shape[1:]))
    expected = model.predict(slab, {"x": data.preprocess(header.preprocessing, x, model.dtype)}).values
    prediction = job.prediction(x)
    assert np.array_equal(prediction.outputs, expected)
    assert np.array_equal(job.predict(x.tolist()), expected)
    assert prediction.classes is not None
    assert prediction.probabilities is not None
    assert prediction.probabilities.argmax(1).tolist() == prediction.classes.tolist()
    np.testing.assert_allclose(prediction.probabilities.sum(1), 1, rtol=1e-5)
    # As release 0.1.0 gave them.
    assert tuple(map(id, prediction)) == (id(prediction.outputs), id(prediction.classes))
    metrics = job.result().train if which == "gate" else None
    if metrics:
        assert np.mean(prediction.classes == y) == metrics.accuracy
    else:
        assert prediction.classes.tolist() == expected.argmax(1).tolist()


def test_the_outputs_of_what_is_no_classifier_have_no_classes(cluster: Cluster) -> None:
    job = cluster.client.submit("xor", {"model.loss": "mean_squared_error", "training.epochs": 1})
    result = job.wait()
    assert result.train
    assert result.train.accuracy is None
    prediction = job.prediction([[0, 1]])
    assert (prediction.classes, prediction.probabilities) == (None, None)


@pytest.mark.parametrize(
    ("which", "x", "message"),
    [
        ("gate", [[1, 2, 3]], "x: has the shape (1, 3); the job was trained on samples of shape (2,)"),
        (
            "gate",
            [1, 2],
            "x: has the shape (2,); the job was trained on samples of shape (2,), so x must have the shape (samples, 2); for",
        ),
        ("gate", [[[1, 2]]], "x: has the shape (1, 1, 2); the job was trained on samples of shape (2,)"),
        ("gate", [[1, 2], [3]], "x: is not an array: setting an array element with a sequence"),
        ("gate", Tensor(), "x: is not an array: call detach() first"),
        ("gate", 5, "x: is a single number; its first axis must be the samples"),
        ("gate", [["a", "b"]], "x: holds elements of type <U1; it must hold real numbers"),
        ("gate", [[1j, 2]], "x: holds elements of type complex128; it must hold real numbers"),
        ("gate", [[0, 1], [0, float("nan")]], "x: holds NaN or infinite values, 1 in all, the first at sample 1, feature 1"),
        ("gate", [[0, float("-inf")]], "x: holds NaN or infinite values, 1 in all, the first at sample 0, feature 1"),
        (
            "gate",
            [[0, 1], [1e300, 1]],
            "x: holds numbers that are too large for float32, 1 in all, the first at sample 1, feature 0",
        ),
        ("digits", [[1, 2]], "x: has the shape (1, 2); the job was trained on samples of shape (64,)"),
        ("digits", [[1e300] * 64], "x: holds numbers that are too large for float32"),
    ],
)
def test_samples_that_do_not_fit_are_told(which: str, x: object, message: str, cluster: Cluster) -> None:
    job = {"gate": cluster.gate, "digits": cluster.digits}[which]
    with pytest.raises(ThalwegError) as caught:
        job.predict(x)  # type: ignore[arg-type]
    assert caught.value.reason == "INVALID_ARGUMENT"
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("which", "x", "message"),
    [
        ("gate", [[1, 2, 3]], "x: has the shape (1, 3), but the job was trained on samples of another shape"),
        ("digits", [[1, 2]], "x: has the shape (1, 2); the job was trained on 64 features"),
    ],
)
def test_samples_that_do_not_fit_a_job_of_the_first_release(which: str, x: object, message: str, cluster: Cluster) -> None:
    """Its parameters do not say the shape of a sample."""
    job = {"gate": cluster.gate, "digits": cluster.digits}[which]
    header, slab = job.slab()
    header.preprocessing.ClearField("shape")
    with pytest.raises(ThalwegError) as caught:
        predict(job.spec, header, slab, x)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_samples_may_have_many_axes(cluster: Cluster) -> None:
    x = np.ones((4, *[1] * 12))
    np.savez("a.npz", x=x, y=np.zeros(4))
    layers = [{"flatten": {}}, {"dense": {"units": 1}}, {"sigmoid": {}}]
    job = cluster.client.submit("xor", {"data.npz": "a.npz", "model.layers": layers, "training.epochs": 1})
    job.wait()
    assert job.predict(x).shape == (4, 1)


def test_arrays_in_two_files_train_to_the_bits_of_an_archive(cluster: Cluster) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(100, 2)), generator.integers(0, 2, 100)
    np.savez("both.npz", x=x, y=y)
    np.savez_compressed("small.npz", x=x, y=y)
    np.save("x.npy", x)
    np.save("y.npy", y)
    settings = {"training.epochs": 2, "training.batch_size": 30}
    sources: list[dict[str, object]] = [
        {"data.npz": "both.npz"},
        {"data.npz": "small.npz"},
        {"data.npy": {"x": "x.npy", "y": "y.npy"}},
    ]
    jobs = [cluster.client.submit("xor", settings | source) for source in sources]
    assert len({job.wait().weights_sha256 for job in jobs}) == 1


def test_outputs_that_are_not_finite_are_told(cluster: Cluster) -> None:
    """Each sample can be held, and what the layers make of one cannot."""
    job = cluster.client.submit("xor", {"model.loss": "mean_squared_error", "model.layers": [{"dense": {"units": 1}}]})
    job.wait()
    weight = float(abs(job.parameters()["0.weight"]).max())
    header, slab = job.slab()
    slab *= 1e10 / weight
    with pytest.raises(ThalwegError, match=r"^x: the outputs for sample 1, counted from 0, are not finite"):
        predict(job.spec, header, slab, np.array([[0, 1], [3e38, 3e38]]))


def test_predictions_are_computed_by_blocks(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    job = cluster.digits
    x = data.read(job.spec.data, lambda _: Path()).x[:50]
    whole = job.prediction(x)
    monkeypatch.setattr("thalweg.client.models._MIN_PREDICTED", 8)
    monkeypatch.setattr("thalweg.client.models._PREDICTED_BYTES", 0)
    seen: list[int] = []
    predict_some = Sequential.predict

    def counting(self: Sequential, at: Slab, batch: Batch) -> Outputs:
        seen.append(len(batch["x"]))
        return predict_some(self, at, batch)

    monkeypatch.setattr(Sequential, "predict", counting)
    parts = job.prediction(x)
    assert seen == [8, 8, 8, 8, 8, 8, 2]
    np.testing.assert_allclose(parts.outputs, whole.outputs, rtol=1e-5, atol=1e-5)
    assert whole.classes is not None
    assert parts.classes is not None
    assert parts.classes.tolist() == whole.classes.tolist()
    assert parts.probabilities is not None
    assert parts.probabilities.shape == (50, 10)
    header, slab = job.slab()
    with pytest.raises(ThalwegError, match=r"^x: the outputs for sample 17, counted from 0, are not finite"):
        predict(job.spec, header, slab * np.float32(1e5), np.concatenate([x[:17], x[17:] * 1e36]))


def test_integers_are_real_numbers_for_a_job_that_was_trained_on_them(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.dtype[Any]] = []
    predict_some = Sequential.predict

    def noting(self: Sequential, at: Slab, batch: Batch) -> Outputs:
        seen.append(batch["x"].dtype)
        return predict_some(self, at, batch)

    monkeypatch.setattr(Sequential, "predict", noting)
    x = np.array([[0, 1], [1, 1]], np.uint8)
    outputs = cluster.gate.predict(x)
    assert np.array_equal(outputs, cluster.gate.predict(x.astype(float)))
    assert seen == [np.float32, np.float32]
    # Samples for models of one's own have the dtype of the parameters.
    assert cluster.gate.prepare(x).dtype == np.float32


@pytest.mark.parametrize("which", ["gate", "digits"])
def test_no_samples_have_no_outputs(which: str, cluster: Cluster) -> None:
    job = {"gate": cluster.gate, "digits": cluster.digits}[which]
    features, outputs = {"gate": (2, 1), "digits": (64, 10)}[which]
    prediction = job.prediction(np.empty((0, features)))
    assert prediction.outputs.shape == (0, outputs)
    assert prediction.classes is not None
    assert prediction.classes.shape == (0,)


def test_parameters_are_named_and_shaped_as_in_torch(cluster: Cluster) -> None:
    parameters = cluster.digits.parameters()
    assert {name: tensor.shape for name, tensor in parameters.items()} == {
        "0.weight": (16, 64),
        "0.bias": (16,),
        "3.weight": (10, 16),
        "3.bias": (10,),
    }
    assert {tensor.dtype for tensor in parameters.values()} == {np.dtype("float32")}


def test_a_trajectory_leads_from_the_first_to_the_last_parameters(cluster: Cluster) -> None:
    job = cluster.gate
    way = job.trajectory()
    assert way.versions == tuple(range(41))
    assert all(np.array_equal(way.parameters(-1)[name], tensor) for name, tensor in job.parameters().items())
    model = Sequential(job.spec, schema((2,)))
    initial = np.empty(model.size, np.float32)
    model.initialize(initial)
    assert np.array_equal(way.slabs[0], initial)


def test_further_metrics_are_measured_at_each_evaluation(cluster: Cluster) -> None:
    wanted = {"model.metrics": ["top_5_accuracy"], "training.epochs": 2}
    job = cluster.client.submit("digits", wanted)
    result = job.wait()
    epochs = [event for event in job.watch() if isinstance(event, EpochEnded)]
    assert len(epochs) == 2
    for metrics in (result.train, result.validation, *(epoch.validation for epoch in epochs)):
        assert metrics is not None
        assert metrics.accuracy is not None
        assert metrics.values.keys() == {"top_5_accuracy"}
        assert metrics.accuracy < metrics.values["top_5_accuracy"] <= 1
    # Measured by the whole: of the validation samples, those whose class is among the five largest outputs.
    x, y = data.held_out(job.spec, lambda _: Path())[:2]
    outputs = job.predict(x)
    five = np.argsort(-outputs, axis=1, kind="stable")[:, :5]
    assert result.validation is not None
    assert result.validation.values["top_5_accuracy"] == pytest.approx((five == y[:, np.newaxis]).any(1).mean())


def test_a_metric_that_does_not_fit_fails_the_job(cluster: Cluster) -> None:
    job = cluster.client.submit("digits", {"model.metrics": ["mean_absolute_error"]})
    with pytest.raises(JobFailedError, match=r"model\.metrics: mean_absolute_error needs a target for each of the 10 outputs"):
        job.wait()


def test_the_history_of_a_job_that_ended_is_all_that_happened(cluster: Cluster) -> None:
    events = cluster.digits.history()
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [event.time for event in events] == sorted(event.time for event in events)
    states = [event.state for event in events if isinstance(event, StateChanged)]
    assert (states[0], states[-1]) == ("QUEUED", "SUCCEEDED")
    assert any(isinstance(event, WorkersChanged) and event.workers for event in events)
    epochs = [event for event in events if isinstance(event, EpochEnded)]
    assert [(event.epoch, event.step) for event in epochs] == [(1, 23), (2, 46), (3, 69)]
    steps = [event for event in events if isinstance(event, StepsTaken)]
    assert [event.first_step for event in steps] == [
        sum(len(before.losses) for before in steps[:index]) for index in range(len(steps))
    ]
    assert sum(len(event.losses) for event in steps) == 69
    assert epochs[-1].validation == cluster.digits.result().validation


def test_the_history_of_a_job_that_has_not_ended_does_not_wait(client: Client) -> None:
    job = client.submit("xor")
    assert [type(event) for event in job.history()] == [StateChanged]


@pytest.mark.parametrize("known", [True, False], ids=["this release", "an earlier one"])
def test_the_history_of_a_running_job_ends_whatever_the_clocks_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, barrier: Barrier, known: bool
) -> None:
    monkeypatch.setattr("thalweg.client.job._HISTORY_SECONDS", 60.0 if known else 0.5)
    if not known:
        watch = Journal.watch
        monkeypatch.setattr(Journal, "watch", lambda self, job, after, _: watch(self, job, after))
    stamp = Timestamp.GetCurrentTime

    def long_ago(self: Timestamp) -> None:
        stamp(self)
        self.seconds -= 3600

    monkeypatch.setattr(Timestamp, "GetCurrentTime", long_ago)
    with running_server(tmp_path) as server, Client(str(server.address)) as client, ThreadFleet(server.address, 1):
        barrier.hold(3)
        job = client.submit("digits")
        wait_for(lambda: job.progress.step > 0)
        events = job.history()
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert any(isinstance(event, WorkersChanged) for event in events)
        job.cancel()


def test_server_info_names_the_fleets(cluster: Cluster) -> None:
    info = cluster.client.server_info()
    assert [(fleet.name, fleet.capacity) for fleet in info.fleets] == [("threads", 2)]
    assert info.max_upload_bytes == cluster.server.config.max_upload_bytes


def test_a_server_that_is_not_there_is_told() -> None:
    with Client(NOWHERE) as client, pytest.raises(ThalwegError) as caught:
        client.jobs()
    assert caught.value.reason == "UNREACHABLE"
    assert str(caught.value) == f"cannot reach a Thalweg server at {NOWHERE}: nothing listens there"


def test_a_proxy_is_not_asked_for_this_machine(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://{NOWHERE}")
    for host in ("127.0.0.1", "localhost"):
        with Client(f"{host}:{cluster.server.address.port}") as client:
            assert client.job("gate").id == "gate"


@pytest.mark.parametrize("address", ["host:port", "host:70700", "http://host", "a b:1"])
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(ThalwegError, match=r"server: .* is not an address; write HOST:PORT"):
        Client(address)


def test_a_server_with_a_token_asks_for_it(tmp_path: Path) -> None:
    with running_server(tmp_path / "server", token="secret") as server:
        for token in (None, "wrong"):
            with Client(server.address, token) as client, pytest.raises(ThalwegError) as caught:
                client.submit("xor")
            assert caught.value.reason == "UNAUTHENTICATED"
            with pytest.raises(ThalwegError, match="missing or wrong"), Client(server.address, token) as client:
                next(client.submit("xor").watch())
        with Client(server.address, "secret") as client:
            assert client.submit("xor").state == "QUEUED"


def test_a_specification_is_the_servers_to_check(client: Client) -> None:
    with pytest.raises(ThalwegError) as caught:
        client.submit("xor", {"optimizer.adam.learning_rate": -1, "training.batch_size": 0})
    assert [violation.field for violation in caught.value.violations] == [
        "training.batch_size",
        "optimizer.adam.learning_rate",
    ]
    assert client.jobs() == []


@pytest.mark.parametrize(
    "error",
    [
        JobFailedError("a", "because"),
        LocalError("the disk is full"),
        JobFileError("job.toml", (Violation("seed", "is odd"), Violation("name", "is long"))),
        ThalwegError("UNREACHABLE", {"address": "a:1", "problem": "b"}),
    ],
)
def test_errors_pickle(error: ThalwegError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert (again.reason, again.metadata, again.violations) == (error.reason, error.metadata, error.violations)


def test_a_loaded_job_can_be_submitted(client: Client) -> None:
    assert client.submit(load_job("or"), name="mine").id == "mine-1"
