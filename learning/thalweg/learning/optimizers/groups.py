"""Groups: tensors with hyperparameters of their own, and the ranges of the slab that follow from them."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from typing import NamedTuple

from thalweg.contract.segments import Segment
from thalweg.contract.segments import elements as elements_of
from thalweg.v1 import job_pb2

# Tensors that an error names.
_MAX_NAMED = 8


class Span(NamedTuple):
    """A range of a slab that is updated with the same hyperparameters.

    `learning_rate_factor` is a factor of the scheduled learning rate. Where it is `frozen`, neither
    the parameters nor the optimizer's state change.
    """

    start: int
    stop: int
    learning_rate_factor: float
    weight_decay: float
    frozen: bool


class Spans:
    """The spans of a slab, end to end."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._spans = tuple(spans)
        self._stops = [span.stop for span in self._spans]

    def within(self, part: slice) -> list[Span]:
        """The spans of a part of the slab, counted from the part's beginning."""
        found: list[Span] = []
        for span in self._spans[bisect_right(self._stops, part.start) :]:
            if span.start >= part.stop:
                break
            start, stop = max(span.start, part.start) - part.start, min(span.stop, part.stop) - part.start
            found.append(span._replace(start=start, stop=stop))
        return found

    def frozen(self, part: slice) -> list[slice]:
        """Where a part of the slab is frozen, counted from the part's beginning."""
        return [slice(span.start, span.stop) for span in self.within(part) if span.frozen]


def spans(
    groups: Sequence[job_pb2.Group],
    weight_decay: float,
    segments: Sequence[Segment],
    elements: int,
    also_frozen: Sequence[job_pb2.Group] = (),
) -> Spans:
    """The spans of a slab. `weight_decay` is that of tensors without a group, or whose group does not state one.

    What groups of `also_frozen` freeze is frozen too. Raises ValueError if the segments have another number of elements.
    """
    if not groups and not also_frozen:
        return Spans([Span(0, elements, 1.0, weight_decay, frozen=False)])
    if elements_of(segments) != elements:
        raise ValueError(f"groups need the segments of a slab of {elements:,} elements, not of {elements_of(segments):,}")
    group_of, frozen_by = _finder(groups), _finder(also_frozen)
    made: list[Span] = []
    start = 0
    for segment in segments:
        group, other = group_of(segment.name), frozen_by(segment.name)
        decay = group.weight_decay if group.HasField("weight_decay") else weight_decay
        factor = group.learning_rate_factor if group.HasField("learning_rate_factor") else 1.0
        span = Span(start, start + segment.size, factor, decay, group.frozen or other.frozen)
        if made and made[-1][2:] == span[2:]:
            made[-1] = made[-1]._replace(stop=span.stop)
        else:
            made.append(span)
        start = span.stop
    return Spans(made)


def unmatched(groups: Sequence[job_pb2.Group], names: Sequence[str], path: str) -> str:
    """What is wrong with groups for a model with tensors of these names; empty if nothing is. `path` is that of the groups."""
    for index, group in enumerate(groups):
        if not any(map(_matcher(group.pattern), names)):
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            named = ", ".join(names[:_MAX_NAMED]) + more
            return f"{path}[{index}].pattern: {group.pattern!r} matches none of the model's tensors, which are {named}"
    return ""


def _finder(groups: Sequence[job_pb2.Group]) -> Callable[[str], job_pb2.Group]:
    """What gives the group of a tensor's name; one without settings if there is none."""
    matchers = [(_matcher(group.pattern), group) for group in groups]
    none = job_pb2.Group()
    return lambda name: next((group for matches, group in matchers if matches(name)), none)


def _matcher(pattern: str) -> Callable[[str], re.Match[str] | None]:
    """What says whether a whole name matches a pattern, in which case matters."""
    return re.compile(translate(pattern)).match
