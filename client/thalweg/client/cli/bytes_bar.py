"""The display of bytes on their way, as in an upload or a backup: a bar on a terminal, if it takes a while."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from thalweg.client.cli.display import shows_bars
from thalweg.client.cli.output import console
from thalweg.client.transfer import UploadProgress

# What takes no longer than these seconds has no bar.
_SHORT_SECONDS = 1.0
# More bytes than are sent between two reports: what was there already says nothing about the pace.
_LEAP = 32 << 20


@contextmanager
def bytes_bar(doing: str = "uploading") -> Iterator[UploadProgress]:
    """Shows how many bytes are done within the context, on stderr, if that is a terminal and it is not short."""
    terminal = console(stderr=True)
    if not shows_bars(terminal):
        yield lambda _, __: None
        return
    bar = BytesBar(terminal, doing)
    with Live(console=terminal, get_renderable=bar.render, refresh_per_second=10, transient=True):
        yield bar


class BytesBar:
    """A bar that is empty at first. It is called with the bytes that are done, and those of all files, from any thread."""

    def __init__(self, terminal: Console, doing: str = "uploading") -> None:
        self._bar = Progress(
            TextColumn(f"[bold]{doing}"),
            BarColumn(bar_width=None),
            TaskProgressColumn("{task.percentage:>3.0f} %"),
            DownloadColumn(),
            TimeRemainingColumn(compact=True),
            console=terminal,
            expand=True,
        )
        self._task = self._bar.add_task("", total=None)
        self._begun = 0.0
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        """Moves the bar."""
        self._begun = self._begun or time.monotonic()
        if done - self._done > _LEAP:
            self._bar.reset(self._task, total=total, completed=done)
        else:
            self._bar.update(self._task, total=total, completed=done)
        self._done = done

    def render(self) -> Group:
        """What is shown now."""
        return Group(self._bar) if self._begun and time.monotonic() - self._begun > _SHORT_SECONDS else Group()
