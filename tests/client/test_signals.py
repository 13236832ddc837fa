"""Signals as items of a queue, and work that stays open for them."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from tests.client.helpers import Cluster
from thalweg.client import Event, ThalwegError
from thalweg.client.cli.follow import attend, follow
from thalweg.client.cli.signals import Inbox, InterruptedBySignalError


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    # The process that runs the tests may ignore it.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with Inbox() as inbox:
        yield inbox
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_comes_in_its_turn(number: signal.Signals, inbox: Inbox) -> None:
    inbox.check()
    inbox.put("before")
    os.kill(os.getpid(), number)
    assert inbox.get() == "before"
    with pytest.raises(InterruptedBySignalError) as caught:
        inbox.get()
    assert caught.value.exit_code == 128 + number
    with pytest.raises(InterruptedBySignalError):
        inbox.check()


def test_a_signal_that_does_not_end_the_wait_is_heard(inbox: Inbox) -> None:
    """As one that comes just before the wait begins: it goes to a thread that does not wait."""
    waiting = threading.Event()

    def strike() -> None:
        waiting.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    thread = threading.Thread(target=strike)
    thread.start()
    waiting.set()
    with pytest.raises(InterruptedBySignalError):
        inbox.get()
    thread.join()


def test_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Inbox():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_was_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Inbox() as inbox:
            os.kill(os.getpid(), signal.SIGHUP)
            inbox.check()
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_are_taken_again_from_whoever_took_them(inbox: Inbox) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)
    inbox.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(InterruptedBySignalError):
        inbox.get()


def test_a_signal_that_was_checked_for_does_not_come_again(inbox: Inbox) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(InterruptedBySignalError):
        inbox.check()
    assert attend(lambda: 5, inbox) == 5
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(InterruptedBySignalError) as caught:
        inbox.get()
    assert caught.value.number == signal.SIGTERM


def test_what_is_attended_gives_its_value_or_its_error(inbox: Inbox) -> None:
    assert attend(lambda: 5, inbox) == 5
    with pytest.raises(ZeroDivisionError):
        attend(lambda: 1 // 0, inbox)


def test_what_takes_long_is_left_on_a_signal(inbox: Inbox) -> None:
    begun, forever = threading.Event(), threading.Event()

    def action() -> None:
        begun.set()
        os.kill(os.getpid(), signal.SIGINT)
        forever.wait()

    with pytest.raises(InterruptedBySignalError):
        attend(action, inbox)
    assert begun.is_set()
    forever.set()
    # What it gave in the end is not taken for another action's value.
    assert attend(lambda: 7, inbox) == 7


def test_events_are_followed_in_this_thread(cluster: Cluster, inbox: Inbox) -> None:
    events: list[tuple[Event, threading.Thread]] = []
    follow(cluster.gate, inbox, lambda event: events.append((event, threading.current_thread())), after=3)
    assert [event for event, _ in events] == list(cluster.gate.watch(3))
    assert {thread for _, thread in events} == {threading.current_thread()}


def test_a_watch_that_fails_is_told(cluster: Cluster, inbox: Inbox) -> None:
    job = cluster.client.submit("xor", {"training.epochs": 0})
    job.wait()
    job.delete()
    with pytest.raises(ThalwegError, match="there is no job"):
        follow(job, inbox, lambda _: None)
