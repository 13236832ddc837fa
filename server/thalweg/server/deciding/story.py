"""The story of a job: the last events of its life and the decisions that followed, in short form, with times."""

from collections import deque
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import NamedTuple

from thalweg.server.deciding import decisions, events

# Entries of the lifecycle and of the coordinator that are kept of one job, each.
MAX_ENTRIES = 200
# Characters of one value of an entry, and of the entry.
_MAX_VALUE, _MAX_TEXT = 80, 240
# Events and decisions of coordinators that are too frequent to be in a story.
_ROUTINE = (
    events.HeartbeatReceived,
    events.InitialReceived,
    events.ContributionReceived,
    events.EvaluationReceived,
    events.Tick,
    decisions.KeepInitial,
    decisions.Keep,
    decisions.Merge,
    decisions.Reduce,
    decisions.ApplyRange,
    decisions.Promote,
    decisions.AssignDifferentiate,
    decisions.AssignEvaluate,
    decisions.SendRange,
    decisions.ReportStep,
    decisions.ReportEpoch,
    decisions.Dropped,
)


class Teller(Enum):
    """The state machine that an entry comes from."""

    LIFECYCLE = "lifecycle"
    COORDINATOR = "coordinator"


class Entry(NamedTuple):
    """One event or decision. `time` is in seconds since 1970."""

    time: float
    teller: Teller
    text: str


class Story:
    """What happened to one job. The many entries of coordinators displace none of the lifecycle's."""

    def __init__(self, limit: int = MAX_ENTRIES) -> None:
        self._told = {teller: deque[tuple[int, Entry]](maxlen=limit) for teller in Teller}
        self._number = 0

    def add(self, time: float, teller: Teller, text: str) -> None:
        """Takes an entry down."""
        self._number += 1
        self._told[teller].append((self._number, Entry(time, teller, text[:_MAX_TEXT])))

    def add_training(self, time: float, event: events.Event, decided: Sequence[decisions.Decision]) -> None:
        """Takes down what a coordinator decided about an event, but for what happens all the time."""
        told = [decision for decision in decided if not isinstance(decision, _ROUTINE)]
        if isinstance(event, _ROUTINE):
            if not told:
                return
            # Its numbers are not read.
            text = type(event).__name__
        else:
            text = described(event)
        self.add(time, Teller.COORDINATOR, text)
        for decision in told:
            self.add(time, Teller.COORDINATOR, f"  {described(decision)}")

    def entries(self) -> list[Entry]:
        """All that is kept, in the order in which it happened."""
        return [entry for _, entry in sorted(entry for told in self._told.values() for entry in told)]

    def __str__(self) -> str:
        entries = self.entries()
        if not entries:
            return "nothing has happened yet"
        last = entries[-1].time
        return "\n".join(f"{entry.time - last:+10.3f} s  {entry.teller.value:<11}  {entry.text}" for entry in entries)


def described(message: object) -> str:
    """An event or a decision in short form: its name, and its fields that are not empty."""
    values = []
    if is_dataclass(message):
        for field in fields(message):
            value = getattr(message, field.name)
            if value is None or value in ("", ()):
                continue
            text = value.name if isinstance(value, Enum) else " ".join(repr(value).split())
            values.append(f"{field.name}={text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 1] + '…'}")
    return f"{type(message).__name__}({', '.join(values)})" if values else type(message).__name__
