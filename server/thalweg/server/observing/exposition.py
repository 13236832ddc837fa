"""Metrics as Prometheus reads them, and the pages that tell whether a process is alive and ready."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from importlib.metadata import version
from platform import python_version
from typing import Protocol, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from thalweg.server.observing.calls import Calls
from thalweg.server.observing.pages import Page, Request, Response, text

Families: TypeAlias = Sequence[Metric]


class Source(Protocol):
    """What a process tells of itself."""

    async def observe(self) -> Families:
        """The metrics now. Called in the event loop, which must not wait for long."""
        ...

    def inspect(self) -> Families:
        """Further metrics now, for which the system is asked. Called in another thread."""
        ...

    def unready(self) -> str:
        """Why it cannot do what it is asked for, in words for people who are not known; empty if it can."""
        ...


class _Taken:
    """Metrics that were taken, as a registry has them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class Exposition:
    """The pages of one process. `admits` says whether the bearer of a token, which may be empty, gets /metrics.

    The other pages are for everyone, and tell next to nothing.
    """

    def __init__(self, source: Source, calls: Calls, admits: Callable[[str], bool]) -> None:
        self._source = source
        self._calls = calls
        self._admits = admits
        self.pages: dict[str, Page] = {"/metrics": self._metrics, "/healthz": self._alive, "/readyz": self._ready}

    async def _alive(self, _: Request) -> Response:
        return text("alive")

    async def _ready(self, _: Request) -> Response:
        problem = self._source.unready()
        return text(problem, HTTPStatus.SERVICE_UNAVAILABLE) if problem else text("ready")

    async def _metrics(self, request: Request) -> Response:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if not self._admits(bearer if scheme == "Bearer" else ""):
            problem = "this takes the token of an administrator or a viewer: Authorization: Bearer TOKEN"
            return text(problem, HTTPStatus.UNAUTHORIZED)
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        families = [*_of_process(), *_of_calls(self._calls), *await self._source.observe()]

        def rendered() -> bytes:
            registry = CollectorRegistry()
            registry.register(_Taken([*families, *self._source.inspect()]))
            ProcessCollector(registry=registry)
            return bytes(encode(registry))

        return Response(await asyncio.to_thread(rendered), kind=kind)


def gauge(name: str, meaning: str, value: float) -> Metric:
    """A number that goes up and down."""
    return GaugeMetricFamily(name, meaning, value)


def counter(name: str, meaning: str, value: float) -> Metric:
    """A number that only grows while the process lives. The name goes without `_total`."""
    return CounterMetricFamily(name, meaning, value)


def gauges(name: str, meaning: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    """Numbers that go up and down, by the values of a label."""
    family = GaugeMetricFamily(name, meaning, labels=(label,))
    for value, number in values:
        family.add_metric((value,), number)
    return family


def counters(name: str, meaning: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    """Numbers that only grow, by the values of a label. The name goes without `_total`."""
    family = CounterMetricFamily(name, meaning, labels=(label,))
    for value, number in values:
        family.add_metric((value,), number)
    return family


def _of_process() -> Families:
    family = GaugeMetricFamily("thalweg_build_info", "The release; the value is always 1.", labels=("version", "python_version"))
    family.add_metric((version("thalweg"), python_version()), 1)
    return [family]


def _of_calls(calls: Calls) -> Families:
    family = CounterMetricFamily("thalweg_calls", "gRPC calls that have ended, by method and status.", labels=("method", "code"))
    for labels, number in calls.ended.items():
        family.add_metric(labels, number)
    return [family]
