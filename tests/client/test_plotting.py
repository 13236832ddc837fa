"""Pictures: what they draw is what happened."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tests.client.conftest import Command
from tests.client.helpers import Cluster, names_in
from thalweg.client import Client, EpochEnded, LocalError, Metrics, Progress, StepsTaken, ThalwegError
from thalweg.client.models import Landscape
from thalweg.client.plotting import Element, learning_curve, loss_slice, parse_element, save_figure
from thalweg.client.plotting.curve import _thinned, course
from thalweg.client.plotting.figures import new_figure
from thalweg.client.plotting.slices import locate, measure, most_moved
from thalweg.v1 import job_pb2


def curves_of(axes: Axes) -> list[NDArray[np.float64]]:
    """The points of each curve, shape (n, 2)."""
    return [np.asarray(line.get_xydata(), np.float64) for line in axes.lines]


def lines(axes: Axes) -> dict[str, NDArray[np.float64]]:
    """The curves that have a name."""
    names = [str(line.get_label()) for line in axes.lines]
    return {name: curve for name, curve in zip(names, curves_of(axes), strict=True) if not name.startswith("_")}


def texts(figure: Figure) -> list[str]:
    """Titles, and what is written beside the curves."""
    found = [figure.get_suptitle()]
    for axes in figure.axes:
        legend = axes.get_legend()
        labels = legend.get_texts() if legend else []
        found += [axes.get_title("left"), *(text.get_text() for text in (*axes.texts, *labels))]
    return found


def test_a_learning_curve_is_what_happened(cluster: Cluster) -> None:
    events = cluster.digits.history()
    losses = [loss for event in events if isinstance(event, StepsTaken) for loss in event.losses]
    epochs = [event for event in events if isinstance(event, EpochEnded)]
    figure = learning_curve(cluster.digits)
    upper, lower = figure.axes
    curves = lines(upper)
    assert set(curves) == {"training, each step", "training, mean of the epoch", "validation"}
    np.testing.assert_allclose(curves["training, each step"], [(step / 23, loss) for step, loss in enumerate(losses)])
    np.testing.assert_allclose(curves["training, mean of the epoch"], [(e.epoch - 0.5, e.train_loss) for e in epochs])
    validation = [(e.epoch, e.validation) for e in epochs if e.validation]
    np.testing.assert_allclose(curves["validation"], [(epoch, metrics.loss) for epoch, metrics in validation])
    np.testing.assert_allclose(curves_of(lower)[0], [(epoch, metrics.accuracy or 0) for epoch, metrics in validation])
    assert upper.get_ylabel() == "loss (softmax cross entropy)"
    assert lower.get_ylabel() == "validation accuracy"
    assert lower.get_xlabel() == "epoch"
    best = max(metrics.accuracy or 0 for _, metrics in validation)
    assert texts(figure)[:2] == ["digits: learning curve", "succeeded after 3 epochs and 69 steps"]
    assert texts(learning_curve(cluster.gate))[1] == "succeeded after 40 epochs and 40 steps"
    assert any(text.startswith(f"best {best * 100:.1f} %, epoch ") for text in texts(figure))


def test_a_learning_curve_without_validation_has_no_second_picture(cluster: Cluster) -> None:
    (axes,) = learning_curve(cluster.gate).axes
    curves = lines(axes)
    assert set(curves) == {"training, each step", "training, mean of the epoch"}
    assert len(curves["training, each step"]) == 40


def test_a_job_without_steps_has_no_learning_curve(client: Client) -> None:
    job = client.submit("xor")
    job.cancel()
    with pytest.raises(LocalError, match="job xor-1 has taken no steps, so it has no learning curve"):
        learning_curve(job)


def test_the_course_of_a_job_that_began_again_is_the_last_one() -> None:
    now = datetime.now(UTC)
    progress = Progress(4, 4, 2, 2, 0.5, 0.1, None, 1, 1)
    validation = Metrics(0.25, 0.75)
    history = course(
        [
            StepsTaken(1, now, 0, (9, 8), progress),
            EpochEnded(2, now, 1, 2, 8.5, None),
            StepsTaken(3, now, 0, (4, 3), progress),
            EpochEnded(4, now, 1, 2, 3.5, validation),
            StepsTaken(5, now, 2, (2, 1), progress),
            EpochEnded(6, now, 2, 4, 1.5, Metrics(0.125, None)),
        ]
    )
    assert history.steps.tolist() == [[0, 0.5, 1, 1.5], [4, 3, 2, 1]]
    assert history.train.tolist() == [[0.5, 1.5], [3.5, 1.5]]
    assert history.validation.tolist() == [[1, 2], [0.25, 0.125]]
    assert history.accuracy.tolist() == [[1], [0.75]]


def test_a_long_curve_is_drawn_as_the_range_that_it_covers() -> None:
    curve = np.array([np.arange(50_001.0), np.random.default_rng(0).normal(size=50_001)])
    thinned = _thinned(curve)
    assert thinned.shape == (2, 4000)
    assert (thinned[1].min(), thinned[1].max()) == (curve[1].min(), curve[1].max())
    assert np.all(np.diff(thinned[0]) >= 0)
    assert np.array_equal(_thinned(curve[:, :4000]), curve[:, :4000])


def test_a_slice_is_the_loss_along_one_weight(cluster: Cluster) -> None:
    job = cluster.gate
    element = parse_element("2.weight[0,3]")
    figure = loss_slice(job, element)
    axes = figure.axes[0]
    way = job.trajectory()
    landscape = Landscape(job.spec, lambda _: Path())
    assert landscape.samples == 4
    slabs = way.slabs.astype(np.float64)
    values = np.array([way.parameters(index)["2.weight"][0, 3] for index in range(len(way.versions))])
    losses = [landscape.loss(slab) for slab in slabs]
    walked = next(curve for curve in curves_of(axes) if len(curve) == len(values))
    np.testing.assert_allclose(walked, np.column_stack([values, losses]))
    np.testing.assert_allclose(np.asarray(axes.collections[0].get_offsets()), walked)
    end = lines(axes)["the slice at the end of training"]
    position = locate(way.layout, element)
    np.testing.assert_allclose(end[:, 1], landscape.along(slabs[-1], position, end[:, 0]))
    assert end[0, 0] < values.min() < values.max() < end[-1, 0]
    # Where the end is too flat to be seen, it is drawn below once more.
    (named,) = [part for part in figure.axes if part.get_xlabel() == "2.weight[0,3]"]
    assert any(np.array_equal(curve, end) for curve in curves_of(named))
    assert texts(figure)[0] == "gate: the loss over one weight, and the way downhill"
    assert texts(figure)[1].startswith("loss over 4 training samples")
    assert {"start", "end"} <= set(texts(figure))


def test_the_way_ends_on_the_slice_and_with_the_jobs_loss(cluster: Cluster) -> None:
    way = cluster.gate.trajectory()
    found = measure(Landscape(cluster.gate.spec, lambda _: Path()), way, 5)
    train = cluster.gate.result().train
    assert train
    assert found.losses[-1] == pytest.approx(train.loss, rel=1e-5)
    assert found.bases == (0, 10, 20, 30, 40)
    assert found.curves.shape == (5, 81)
    for base, curve in zip(found.bases, found.curves, strict=True):
        assert np.interp(found.values[base], found.grid, curve) == pytest.approx(found.losses[base], rel=1e-2)


def test_by_default_a_slice_is_that_of_the_weight_that_moved_the_most(cluster: Cluster, command: Command) -> None:
    way = cluster.gate.trajectory()
    element = most_moved(way)
    moved = np.abs(way.slabs[-1].astype(float) - way.slabs[0])
    assert moved[locate(way.layout, element)] == moved.max() > 0
    axes = loss_slice(cluster.gate).axes
    assert any(part.get_xlabel() == str(element) for part in axes)
    assert command("plot", "gate", "--slice", "auto", "--server", cluster.address).out.endswith("/gate-slice.png\n")


def test_a_slice_of_a_job_that_took_no_steps_shows_the_curve(cluster: Cluster) -> None:
    job = cluster.client.submit("xor", {"training.epochs": 0})
    job.wait()
    figure = loss_slice(job)
    axes = figure.axes[0]
    curve = lines(axes)["the slice at the end of training"]
    low, high = axes.get_ylim()
    assert low < curve[:, 1].min() < curve[:, 1].max() < high
    assert high - low < 2 * np.ptp(curve[:, 1])
    assert np.ptp(curve[:, 1]) > 1e-3


def test_a_slice_of_a_job_with_a_file_of_its_own(cluster: Cluster) -> None:
    np.savez("a.npz", x=np.random.default_rng(0).normal(size=(12, 3)), y=np.arange(12) % 2)
    job = cluster.client.submit("xor", {"data.npz": "a.npz", "training.epochs": 2})
    job.wait()
    axes = loss_slice(job, Element("0.weight", (7, 2))).axes[0]
    assert axes.get_title("left").startswith("loss over 12 training samples")


@pytest.mark.parametrize(
    ("text", "element"),
    [
        ("0.weight[3,5]", Element("0.weight", (3, 5))),
        (" 0.bias [ 7 ] ", Element("0.bias", (7,))),
        ("a[0, 1 , 2]", Element("a", (0, 1, 2))),
    ],
)
def test_elements_are_read(text: str, element: Element) -> None:
    assert parse_element(text) == element
    assert parse_element(str(element)) == element


@pytest.mark.parametrize("text", ["", "0.weight", "[1]", "a[]", "a[-1]", "a[1.5]", "a[1][2]", "a[1,]", "a[b]"])
def test_what_names_no_element_is_told(text: str) -> None:
    with pytest.raises(ThalwegError, match="names no weight; write TENSOR") as caught:
        parse_element(text)
    assert caught.value.violations[0].field == "--slice"


LAYOUT = job_pb2.Layout(
    tensors=[job_pb2.Tensor(name="2.weight", shape=[1, 4]), job_pb2.Tensor(name="0.weight", shape=[4, 2])], dtype="float32"
)


def test_an_element_has_its_place_in_the_slab() -> None:
    assert locate(LAYOUT, Element("2.weight", (0, 3))) == 3
    assert locate(LAYOUT, Element("0.weight", (3, 1))) == 11


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (Element("0.wait", (0, 0)), "there is no tensor '0.wait'; did you mean 0.weight? (tensors: "),
        (Element("x", (0,)), "there is no tensor 'x' (tensors: 0.weight (4, 2), 2.weight (1, 4))"),
        (Element("0.weight", (4, 0)), "0.weight[4,0] is outside: "),
        (Element("0.weight", (0,)), "0.weight[0] is outside: "),
    ],
)
def test_an_element_that_is_not_there_is_told(element: Element, message: str) -> None:
    with pytest.raises(ThalwegError) as caught:
        locate(LAYOUT, element)
    assert caught.value.reason == "INVALID_ARGUMENT"
    assert str(caught.value).startswith(f"--slice: {message}")


@pytest.mark.parametrize("name", ["a.png", "a.SVG", "a.pdf"])
def test_a_picture_is_written_whole(name: str, cluster: Cluster, tmp_path: Path) -> None:
    save_figure(learning_curve(cluster.gate), tmp_path / name)
    begin = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[Path(name).suffix.lower()]
    assert (tmp_path / name).read_bytes().startswith(begin)
    assert [found for found in names_in(tmp_path) if found != "home"] == [name]


def test_why_matplotlib_cannot_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class ReadOnly:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "matplotlib.figure":
                raise OSError("Matplotlib requires access to a writable cache directory")

    monkeypatch.delitem(sys.modules, "matplotlib.figure")
    monkeypatch.setattr(sys, "meta_path", [ReadOnly(), *sys.meta_path])
    with pytest.raises(LocalError, match="requires access to a writable cache directory"):
        new_figure(1, 1)


def test_a_job_draws_itself(cluster: Cluster, tmp_path: Path) -> None:
    figure = cluster.digits.plot(path=tmp_path / "curve.svg")
    assert figure.get_suptitle().startswith("digits")
    assert (tmp_path / "curve.svg").stat().st_size
    assert "the way downhill" in cluster.gate.plot(slice="auto").get_suptitle()
    assert "the way downhill" in cluster.gate.plot("0.bias[1]").get_suptitle()
    with pytest.raises(ThalwegError, match=r"path: curve\.txt: the name of a picture must end in one of \.png, \.svg, \.pdf"):
        cluster.gate.plot(path=tmp_path / "curve.txt")
