"""The display of a running job: a bar with numbers on a terminal, occasional lines elsewhere."""

import sys
import time
from html import escape
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from thalweg.client.cli.output import accuracy_of, console
from thalweg.client.records import (
    CheckpointFailed,
    CheckpointWritten,
    EpochEnded,
    Event,
    Notice,
    StateChanged,
    StepsTaken,
    WorkersChanged,
)
from thalweg.client.records import Progress as JobProgress
from thalweg.contract.states import NO_WORKERS
from thalweg.contract.text import visible

# The number of lines in a log for a job's epochs, and the seconds between lines about steps if epochs take long.
_EPOCH_LINES = 10
_STEP_LINE_SECONDS = 30.0
# The seconds over which the pace is measured, from which the remaining time follows: steps may take minutes.
_PACE_SECONDS = 3600.0
# The seconds between updates of a notebook's bar.
_DRAW_SECONDS = 0.2


class JobView:
    """The state of a job, from the events so far."""

    def __init__(self) -> None:
        self.status = ""
        self.progress: JobProgress | None = None
        self.epochs: list[EpochEnded] = []
        self.workers = 0

    def take(self, event: Event) -> None:
        """Records an event."""
        match event:
            case StateChanged():
                self.status = event.status
            case WorkersChanged():
                self.workers = event.workers
                if not event.workers:
                    self.status = NO_WORKERS
            case StepsTaken():
                self.status = ""
                self.progress = event.progress
            case EpochEnded():
                # A job that was resumed from a checkpoint repeats the steps after it.
                while self.epochs and self.epochs[-1].epoch >= event.epoch:
                    self.epochs.pop()
                self.epochs.append(event)
            case Notice() | CheckpointWritten() | CheckpointFailed():
                pass

    def numbers(self) -> list[str]:
        """Loss, validation and pace, if they are known."""
        if self.progress is None:
            return []
        parts = [] if self.progress.loss is None else [f"loss {self.progress.loss:.4g}"]
        validation = self.epochs[-1].validation if self.epochs else self.progress.validation
        if validation:
            parts.append(f"validation {accuracy_of(validation)}")
        if self.progress.samples_per_second:
            parts.append(f"{self.progress.samples_per_second:,.0f} samples/s")
        return [*parts, count_workers(self.workers)]


def words_of(failure: CheckpointFailed) -> str:
    """A line that says that a checkpoint could not be written."""
    return f"the checkpoint after {failure.version:,} updates could not be written: {failure.problem}; training continues"


def count_workers(workers: int) -> str:
    """A number of workers, in words."""
    return f"{workers} worker{'' if workers == 1 else 's'}"


class Display(Protocol):
    """A display of a running job."""

    picture: JobView

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def say(self, text: str) -> None:
        """Shows what happens now."""
        ...

    def note(self, text: str) -> None:
        """Shows a line that stays visible."""
        ...

    def show(self, event: Event) -> None:
        """Shows an event."""
        ...


def display(name: str) -> Display:
    """A display in the notebook that this process belongs to, or on stderr."""
    if "ipykernel" in sys.modules:
        return Notebook(name)
    terminal = console(stderr=True)
    return Screen(name, terminal) if shows_bars(terminal) else Log(name)


def shows_bars(terminal: Console) -> bool:
    """Whether stderr, of which `terminal` is the console, is a terminal that can move its cursor."""
    return sys.stderr.isatty() and not terminal.is_dumb_terminal


class Log:
    """Lines on a stderr that is a file or a pipe."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.picture = JobView()
        self._said = ""
        self._printed = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def say(self, text: str) -> None:
        """Prints what happens now, unless it was printed before."""
        if text and text != self._said:
            self._said = text
            self.note(text)

    def note(self, text: str) -> None:
        """Prints a line."""
        self._printed = time.monotonic()
        sys.stderr.write(f"{self.name}: {visible(text)}\n")
        sys.stderr.flush()

    def show(self, event: Event) -> None:
        """Prints a line for an event that deserves one."""
        self.picture.take(event)
        match event:
            case Notice():
                self.note(event.text)
            case CheckpointFailed():
                self.note(words_of(event))
            case WorkersChanged():
                self.say(count_workers(event.workers))
                self.say(self.picture.status if not event.workers else "")
            case StateChanged():
                self.say(event.status)
            case EpochEnded():
                self._epoch(event)
            case StepsTaken() if time.monotonic() - self._printed > _STEP_LINE_SECONDS:
                done = f"step {event.progress.step:,} of {event.progress.total_steps:,}"
                self.note(", ".join([done, *self.picture.numbers()]))

    def _epoch(self, event: EpochEnded) -> None:
        total = self.picture.progress.total_epochs if self.picture.progress else 0
        every = max(1, -(-total // _EPOCH_LINES))
        if event.epoch % every == 0 or event.epoch == total:
            validation = f", validation {accuracy_of(event.validation)}" if event.validation else ""
            self.note(f"epoch {event.epoch}{f' of {total}' if total else ''}: loss {event.train_loss:.4g}{validation}")


class Screen:
    """A bar and a line of numbers on a terminal."""

    def __init__(self, name: str, terminal: Console) -> None:
        self.picture = JobView()
        self._terminal = terminal
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None, pulse_style="grey50"),
            TaskProgressColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[epoch]}"),
            TimeRemainingColumn(compact=True),
            console=terminal,
            expand=True,
            speed_estimate_period=_PACE_SECONDS,
        )
        self._task = self._bar.add_task(name, total=None, epoch="")
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(console=terminal, get_renderable=self._render, refresh_per_second=10, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def _render(self) -> Group:
        if self.picture.status or self.picture.progress is None:
            self._spinner.update(text=Text(self.picture.status, style="cyan", overflow="ellipsis", no_wrap=True))
            line = Table.grid()
            line.add_row("  ", self._spinner)
            return Group(self._bar, line)
        numbers = Text("   ".join(self.picture.numbers()), overflow="ellipsis", no_wrap=True)
        return Group(self._bar, Text("  ", style="dim") + numbers)

    def say(self, text: str) -> None:
        """Shows what happens in place of the numbers."""
        self.picture.status = text

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        self._terminal.print(Text.assemble(("note ", "dim"), text))

    def show(self, event: Event) -> None:
        """Moves the bar."""
        self.picture.take(event)
        match event:
            case Notice():
                self.note(event.text)
            case CheckpointFailed():
                self.note(words_of(event))
            case StepsTaken(progress=progress):
                epoch = min(progress.epoch + 1, progress.total_epochs)
                self._bar.update(
                    self._task,
                    total=progress.total_steps,
                    completed=progress.step,
                    epoch=f"epoch {epoch}/{progress.total_epochs}",
                )


class Notebook:
    """A bar and a line of numbers in the output of a notebook's cell."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.picture = JobView()
        self._notes: list[str] = []
        self._drawn = 0.0
        # Notebooks have it.
        self._output: Any = import_module("IPython.display")
        self._handle: Any = None

    def __enter__(self) -> Self:
        self._handle = self._output.display(self, display_id=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._draw()

    def __repr__(self) -> str:
        progress = self.picture.progress
        done = f"step {progress.step:,} of {progress.total_steps:,}" if progress else ""
        line = ", ".join(filter(None, [done, *self.picture.numbers(), self.picture.status]))
        return "\n".join([f"{self.name}: {line}", *self._notes])

    def _repr_html_(self) -> str:
        progress = self.picture.progress
        value = f'value="{progress.step}" max="{max(1, progress.total_steps)}"' if progress else ""
        first, *notes = map(escape, repr(self).splitlines())
        return "<br>".join([f'<progress style="width: 20em" {value}></progress> {first}', *notes])

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._handle.update(self)

    def say(self, text: str) -> None:
        """Shows what happens beside the numbers."""
        self.picture.status = text
        self._draw()

    def note(self, text: str) -> None:
        """Adds a line below the bar."""
        self._notes.append(visible(text))
        self._draw()

    def show(self, event: Event) -> None:
        """Moves the bar, a few times a second."""
        self.picture.take(event)
        match event:
            case Notice():
                self.note(event.text)
            case CheckpointFailed():
                self.note(words_of(event))
            case _ if not isinstance(event, StepsTaken) or time.monotonic() - self._drawn > _DRAW_SECONDS:
                self._draw()
