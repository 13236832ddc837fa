"""Runs long actions in a thread, so that the main thread can receive signals: above all, following a job's events."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from thalweg.client.cli.signals import Inbox
from thalweg.client.job import Job
from thalweg.client.records import Event

T = TypeVar("T")


class _Done(NamedTuple):
    """What an action returned or raised."""

    action: object
    value: Any
    error: BaseException | None


def follow(
    job: Job, inbox: Inbox, show: Callable[[Event], None], after: int = 0, say: Callable[[str], None] = lambda _: None
) -> None:
    """Passes a job's events to `show`, in this thread, until it has ended, and messages about the connection to `say`.

    Raises ThalwegError if the stream breaks for good, and InterruptedBySignalError.
    """

    def watch() -> None:
        for event in job.watch(after, lambda words: inbox.put((say, words))):
            inbox.put((watch, event))

    _start(watch, inbox)
    while True:
        match inbox.get():
            case _Done(action, _, error) if action is watch:
                if error:
                    raise error
                return
            case (action, event) if action is watch:
                show(event)
            case (action, words) if action is say:
                say(words)


def attend(action: Callable[[], T], inbox: Inbox) -> T:
    """Runs an action and returns its value. Raises what it raises, or InterruptedBySignalError, while the action continues."""
    _start(action, inbox)
    while True:
        match inbox.get():
            case _Done(done, value, error) if done is action:
                if error:
                    raise error
                answer: T = value
                return answer


def _start(action: Callable[[], Any], inbox: Inbox) -> None:
    def run() -> None:
        try:
            inbox.put(_Done(action, action(), None))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            inbox.put(_Done(action, None, error))

    threading.Thread(target=run, name="thalweg-follow", daemon=True).start()
