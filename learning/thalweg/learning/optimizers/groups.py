"""Groups: tensors with hyperparameters of their own, and the ranges of the slab that follow from them."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from typing import NamedTuple

from thalweg.contract.segments import Kind, Segment
from thalweg.contract.segments import elements as elements_of
from thalweg.learning.reductions import Reduction, Scaled
from thalweg.v1 import job_pb2

# The most tensors that an error names.
_MAX_NAMED = 8


class Span(NamedTuple):
    """A range of a slab that is updated with the same hyperparameters.

    `learning_rate_factor` is a factor of the scheduled learning rate, `gradient_factor` one of the gradient. If it is `frozen`,
    neither parameters nor the optimizer's state change. If it is `plain`, as statistics are, the gradient itself is subtracted,
    without any factor, and the state does not change. `reductions` are those whose factors are in it.
    """

    start: int
    stop: int
    learning_rate_factor: float
    weight_decay: float
    frozen: bool
    gradient_factor: float = 1.0
    plain: bool = False
    reductions: tuple[Reduction, ...] = ()

    @property
    def counted(self) -> bool:
        """Whether norms count it."""
        return not (self.frozen or self.plain)


class Spans:
    """The spans of a slab, end to end. Where a step has reductions per segment, each segment is a span."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._spans = tuple(spans)
        self._stops = [span.stop for span in self._spans]

    @property
    def count(self) -> int:
        """The number of spans."""
        return len(self._spans)

    @property
    def elements(self) -> int:
        """The number of elements of the slab."""
        return self._stops[-1] if self._stops else 0

    def at(self, position: int) -> int:
        """The index of the span that has the element at a position."""
        return bisect_right(self._stops, position)

    def end(self, position: int) -> int:
        """The end of the span that has the element at a position."""
        return self._stops[self.at(position)]

    def scaled(self, reduction: Reduction, factors: Sequence[float]) -> "Spans":
        """These spans, scaled by a reduction's factors: one for each span, or one for all. Raises ValueError if they are not."""
        each = factors if reduction.per_segment else list(factors) * self.count
        return Spans(_scaled(span, reduction, factor) for span, factor in zip(self._spans, each, strict=True))

    def within(self, part: slice) -> list[Span]:
        """The spans of a part of the slab, counted from the part's beginning."""
        found: list[Span] = []
        for span in self._spans[bisect_right(self._stops, part.start) :]:
            if span.start >= part.stop:
                break
            start, stop = max(span.start, part.start) - part.start, min(span.stop, part.stop) - part.start
            found.append(span._replace(start=start, stop=stop))
        return found


def spans(
    groups: Sequence[job_pb2.Group],
    weight_decay: float,
    segments: Sequence[Segment],
    elements: int,
    also_frozen: Sequence[job_pb2.Group] = (),
    by_segment: bool = False,
) -> Spans:
    """The spans of a slab, each a segment if `by_segment`.

    `weight_decay` is that of tensors without a group, or whose group does not state one. What `also_frozen` freezes is frozen
    too. Groups are of parameters: statistics are plain and constants frozen, whatever the groups say. Raises ValueError if the
    segments have another number of elements.
    """
    alike = all(segment.kind is Kind.PARAMETER for segment in segments)
    if alike and not groups and not also_frozen and not by_segment:
        return Spans([Span(0, elements, 1.0, weight_decay, frozen=False)])
    if elements_of(segments) != elements:
        raise ValueError(
            f"groups and norms of segments need the segments of a slab of {elements:,} elements, not of {elements_of(segments):,}"
        )
    group_of, frozen_by = _finder(groups), _finder(also_frozen)
    made: list[Span] = []
    start = 0
    for segment in segments:
        stop = start + segment.size
        if segment.kind is Kind.PARAMETER:
            group, other = group_of(segment.name), frozen_by(segment.name)
            decay = group.weight_decay if group.HasField("weight_decay") else weight_decay
            factor = group.learning_rate_factor if group.HasField("learning_rate_factor") else 1.0
            span = Span(start, stop, factor, decay, group.frozen or other.frozen)
        else:
            span = Span(start, stop, 1.0, 0.0, segment.kind is Kind.CONSTANT, plain=segment.kind is Kind.STATISTIC)
        if made and made[-1][2:] == span[2:] and not by_segment:
            made[-1] = made[-1]._replace(stop=span.stop)
        else:
            made.append(span)
        start = span.stop
    return Spans(made)


def _scaled(span: Span, reduction: Reduction, factor: float) -> Span:
    span = span._replace(reductions=(*span.reductions, reduction))
    match reduction.scaled:
        case Scaled.GRADIENT:
            return span._replace(gradient_factor=span.gradient_factor * factor)
        case Scaled.LEARNING_RATE:
            return span._replace(learning_rate_factor=span.learning_rate_factor * factor)


def unmatched(groups: Sequence[job_pb2.Group], names: Sequence[str], path: str) -> str:
    """What is wrong with groups for a model with tensors of these names; empty if nothing is. `path` is that of the groups."""
    for index, group in enumerate(groups):
        if not any(map(_matcher(group.pattern), names)):
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            named = ", ".join(names[:_MAX_NAMED]) + more
            return f"{path}[{index}].pattern: {group.pattern!r} matches none of the model's tensors, which are {named}"
    return ""


def _finder(groups: Sequence[job_pb2.Group]) -> Callable[[str], job_pb2.Group]:
    """A function that returns the group of a tensor's name; one without settings if it is in none."""
    matchers = [(_matcher(group.pattern), group) for group in groups]
    none = job_pb2.Group()
    return lambda name: next((group for matches, group in matchers if matches(name)), none)


def _matcher(pattern: str) -> Callable[[str], re.Match[str] | None]:
    """A function that returns whether a whole name matches a pattern. Case matters."""
    return re.compile(translate(pattern)).match
