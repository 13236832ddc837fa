"""What people see of a job while it runs: a bar with numbers on a terminal, lines elsewhere."""

import io
import sys
from datetime import UTC, datetime
from types import ModuleType

import pytest
from rich.console import Console

from tests.client.helpers import Cluster
from thalweg.client import (
    CheckpointFailed,
    CheckpointWritten,
    EpochEnded,
    Metrics,
    Notice,
    Progress,
    StateChanged,
    StepsTaken,
    WorkersChanged,
)
from thalweg.client.cli import display as displays
from thalweg.client.cli.display import JobView, Log, Notebook, Screen, count_workers, display
from thalweg.client.records import Event

NOW = datetime(2026, 1, 1, tzinfo=UTC)
VALIDATION = Metrics(0.25, 0.9375)


def steps(step: int, total: int = 40, epochs: int = 20) -> StepsTaken:
    progress = Progress(step, total, step * epochs // total, epochs, 0.125, 0.01, VALIDATION, 12345.6, 2)
    return StepsTaken(0, NOW, 0, (0.125,), progress)


def epoch(number: int, validation: Metrics | None = VALIDATION) -> EpochEnded:
    return EpochEnded(0, NOW, number, 2 * number, 0.5, validation)


BEGIN: list[Event] = [
    StateChanged(1, NOW, "QUEUED", "waiting for workers", ""),
    StateChanged(2, NOW, "RUNNING", "preparing the data and the model", ""),
    WorkersChanged(3, NOW, 1, ("a",)),
    WorkersChanged(4, NOW, 2, ("a", "b")),
]


def test_the_numbers_are_those_that_are_known() -> None:
    picture = JobView()
    assert picture.numbers() == []
    for event in BEGIN:
        picture.take(event)
    assert picture.status == "preparing the data and the model"
    picture.take(steps(2))
    assert picture.status == ""
    assert picture.numbers() == ["loss 0.125", "validation 93.8 %", "12,346 samples/s", "2 workers"]
    picture.take(epoch(1, Metrics(0.75, None)))
    assert picture.numbers()[1] == "validation loss 0.75"
    picture.take(WorkersChanged(9, NOW, 0, ()))
    assert picture.status == "waiting for workers"


def test_workers_are_counted_in_words() -> None:
    assert [count_workers(number) for number in (0, 1, 2)] == ["0 workers", "1 worker", "2 workers"]


def test_a_log_has_a_line_for_what_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    with Log("digits-1") as log:
        for event in [*BEGIN, BEGIN[-1], Notice(5, NOW, "a worker was lost"), WorkersChanged(6, NOW, 0, ())]:
            log.show(event)
        log.say("")
    assert capsys.readouterr().err.splitlines() == [
        "digits-1: waiting for workers",
        "digits-1: preparing the data and the model",
        "digits-1: 1 worker",
        "digits-1: 2 workers",
        "digits-1: a worker was lost",
        "digits-1: 0 workers",
        "digits-1: waiting for workers",
    ]


def test_a_checkpoint_is_worth_a_word_if_it_could_not_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    words = "the checkpoint after 1,200 updates could not be written: No space left on device; training continues"
    written, failed = CheckpointWritten(5, NOW, 600, 4096, 0.01), CheckpointFailed(6, NOW, 1200, "No space left on device")
    log, (shown, stream) = Log("a"), screen(200)
    for event in (written, failed):
        log.show(event)
        shown.show(event)
    assert capsys.readouterr().err.splitlines() == [f"a: {words}"]
    assert f"note {words}" in stream.getvalue()
    assert "600" not in stream.getvalue()


def test_epochs_that_are_gone_through_again_are_those_of_the_last_time() -> None:
    picture = JobView()
    for number, loss in ((1, 0.4), (2, 0.3), (3, 0.2), (2, 0.35), (3, 0.25)):
        picture.take(EpochEnded(0, NOW, number, number, loss, None))
    assert [(epoch.epoch, epoch.train_loss) for epoch in picture.epochs] == [(1, 0.4), (2, 0.35), (3, 0.25)]


def test_a_log_has_about_ten_lines_of_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log("a")
    log.show(steps(2, total=50, epochs=25))
    capsys.readouterr()
    for number in range(1, 26):
        log.show(epoch(number))
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "a: epoch 3 of 25: loss 0.5, validation 93.8 %"
    assert shown[-1] == "a: epoch 25 of 25: loss 0.5, validation 93.8 %"
    assert len(shown) == 9


def test_a_log_of_long_epochs_has_lines_of_steps(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(displays, "_STEP_LINE_SECONDS", -1.0)
    log = Log("a")
    log.show(WorkersChanged(1, NOW, 2, ("a", "b")))
    log.show(steps(1234, total=5000))
    assert capsys.readouterr().err.splitlines() == [
        "a: 2 workers",
        "a: step 1,234 of 5,000, loss 0.125, validation 93.8 %, 12,346 samples/s, 2 workers",
    ]


def screen(width: int = 100) -> tuple[Screen, io.StringIO]:
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, color_system=None, width=width, legacy_windows=False)
    return Screen("digits-1", terminal), stream


def rendered(shown: Screen) -> str:
    """What the screen shows now."""
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(shown._render())
    return console.export_text()


def test_a_screen_shows_a_bar_and_the_numbers() -> None:
    shown, _ = screen()
    shown.say("starting Ray")
    assert "digits-1" in rendered(shown)
    assert "starting Ray" in rendered(shown)
    for event in BEGIN:
        shown.show(event)
    assert "preparing the data and the model" in rendered(shown)
    # The pace is measured between two updates.
    shown.show(steps(10))
    shown.show(steps(20))
    text = rendered(shown)
    assert " 50 %" in text
    assert "epoch 11/20" in text
    assert "loss 0.125   validation 93.8 %   12,346 samples/s   2 workers" in text
    assert "preparing" not in text
    shown.show(steps(40))
    assert "100 %" in rendered(shown)
    assert "epoch 20/20" in rendered(shown)


def test_a_screen_tells_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    shown, _ = screen()
    monkeypatch.setattr(shown._bar, "get_time", lambda: now[0])
    shown._bar.reset(shown._task, total=None)
    for step in (10, 20, 30):
        now[0] += 60.0
        shown.show(steps(step, total=40))
    assert "01:00" in rendered(shown)


def test_what_should_stay_stays_above_the_bar() -> None:
    shown, stream = screen()
    with shown:
        shown.show(Notice(1, NOW, "a worker was lost"))
        shown.show(steps(20))
    text = stream.getvalue()
    assert "note a worker was lost" in text
    # The bar and the cursor are as they were before.
    assert text.index("\x1b[?25l") < text.rindex("\x1b[?25h")


def test_what_people_read_is_no_markup() -> None:
    shown, stream = screen()
    with shown:
        shown.show(Notice(1, NOW, "[bold]x[/] [/nonsense]"))
        shown.say("[/nonsense]")
        assert "[/nonsense]" in rendered(shown)
    assert "[bold]x[/] [/nonsense]" in stream.getvalue()


def test_a_display_is_what_stderr_can_show(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(display("a"), Log)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(display("a"), Screen)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(display("a"), Log)


def test_a_real_job_is_shown(cluster: Cluster) -> None:
    shown, _ = screen()
    for event in cluster.digits.watch():
        shown.show(event)
    text = rendered(shown)
    accuracy = shown.picture.epochs[-1].validation
    assert accuracy == cluster.digits.result().validation
    assert accuracy
    assert accuracy.accuracy
    assert "100 %" in text
    assert len(shown.picture.epochs) == 3
    assert f"validation {accuracy.accuracy * 100:.1f} %" in " ".join(shown.picture.numbers())
    assert " samples/s" in " ".join(shown.picture.numbers())


def test_a_notebook_shows_a_bar_that_moves(monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> None:
    drawn: list[tuple[str, str]] = []

    class Handle:
        def update(self, shown: Notebook) -> None:
            drawn.append((repr(shown), shown._repr_html_()))

    output = ModuleType("IPython.display")
    output.display = lambda shown, display_id: Handle()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", output)
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    with display("<gate>") as screen:
        assert isinstance(screen, Notebook)
        for event in cluster.gate.history():
            screen.show(event)
        screen.note("something <else>")
    text, html = drawn[-1]
    assert text.startswith("<gate>: step 40 of 40, loss ")
    assert text.endswith("\nsomething <else>")
    assert html.startswith('<progress style="width: 20em" value="40" max="40"></progress> &lt;gate&gt;: step 40 of 40, loss ')
    assert html.endswith("<br>something &lt;else&gt;")


@pytest.mark.parametrize(
    ("progress", "interactive", "shown"), [(None, False, False), (None, True, True), (True, False, True), (False, True, False)]
)
def test_a_job_that_is_waited_for_shows_its_progress_where_people_type(
    progress: bool | None,
    interactive: bool,
    shown: bool,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    if not interactive:
        monkeypatch.delattr(sys, "ps1")
    job = cluster.client.submit("xor", {"training.epochs": 10})
    job.wait(progress)
    assert (f"{job.id}: epoch 10 of 10: loss " in capsys.readouterr().err) == shown
    job.wait(progress)
    assert capsys.readouterr().err == ""
    job.delete()
