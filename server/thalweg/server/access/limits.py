"""Limits of owners: how much of a server each submitter may use. An operator sets them in a file; without one, there are none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

from thalweg.contract.errors import ThalwegError, Violation, invalid

_ALL, _OWNERS = "default", "owners"


@dataclass(frozen=True)
class OwnerLimits:
    """The limits of one owner; None where there is none.

    `running_jobs` are jobs that have not ended, `workers` those that these jobs request together. `stored_bytes` are in uploads
    and in the files of jobs; `uploads` are files.
    """

    running_jobs: int | None = None
    workers: int | None = None
    stored_bytes: int | None = None
    uploads: int | None = None
    calls_per_second: float | None = None

    def check(self, owner: str, name: str, wanted: float, advice: str) -> None:
        """Raises ThalwegError (LIMIT_EXCEEDED) if an owner would have more of something than the limit of that name."""
        limit: float | None = getattr(self, name)
        if limit is not None and wanted > limit:
            told = {"limit": name, "value": f"{limit:,g}" if limit < 1 << 20 else f"{limit:,}", "advice": advice}
            raise ThalwegError("LIMIT_EXCEEDED", {"name": owner} | told)


NO_LIMITS = OwnerLimits()


@dataclass(frozen=True)
class LimitTable:
    """The limits of all owners: those that are named, and the others."""

    others: OwnerLimits = NO_LIMITS
    owners: Mapping[str, OwnerLimits] = field(default_factory=dict)

    def of(self, owner: str) -> OwnerLimits:
        """The limits of an owner."""
        return self.owners.get(owner, self.others)


def read_table(content: Mapping[str, object]) -> LimitTable:
    """The limits in a file: a table `default` for all submitters, and tables `owners.NAME`, which replace some of its values.

    Raises ThalwegError (INVALID_ARGUMENT) with the field that is wrong.
    """
    for name in content.keys() - {_ALL, _OWNERS}:
        raise _wrong(name, f"is not known; use {_ALL} and {_OWNERS}")
    others = _limits(content.get(_ALL, {}), _ALL, NO_LIMITS)
    named = _table(content.get(_OWNERS, {}), _OWNERS)
    return LimitTable(others, {name: _limits(given, f"{_OWNERS}.{name}", others) for name, given in named.items()})


def _limits(given: object, path: str, otherwise: OwnerLimits) -> OwnerLimits:
    table, names = _table(given, path), [each.name for each in fields(OwnerLimits)]
    values: dict[str, object] = {name: getattr(otherwise, name) for name in names}
    for name, value in table.items():
        if name not in names:
            raise _wrong(f"{path}.{name}", f"is not known; use {', '.join(names)}")
        whole = isinstance(value, int) or (name == "calls_per_second" and isinstance(value, float))
        if isinstance(value, bool) or not whole or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise _wrong(f"{path}.{name}", "must be a number of at least 0")
        values[name] = value
    return OwnerLimits(**values)  # type: ignore[arg-type]


def _table(given: object, path: str) -> Mapping[str, object]:
    if not isinstance(given, dict):
        raise _wrong(path, "must be a table")
    return given


def _wrong(path: str, problem: str) -> ThalwegError:
    return invalid(Violation(path, problem))


class CallRates:
    """How many calls each owner makes in a second. A second's calls may come at once. `clock` gives seconds."""

    def __init__(self, table: LimitTable, clock: Callable[[], float]) -> None:
        self._table = table
        self._clock = clock
        # For each owner, the calls that may be made at once, and when that was so.
        self._left: dict[str, tuple[float, float]] = {}

    def count(self, owner: str) -> None:
        """Counts a call. Raises ThalwegError (LIMIT_EXCEEDED) if there are too many."""
        limits = self._table.of(owner)
        rate = limits.calls_per_second
        if rate is None:
            return
        now = self._clock()
        most = max(1.0, rate)
        left, then = self._left.get(owner, (most, now))
        left = min(most, left + (now - then) * rate) if rate else 0.0
        self._left[owner] = max(0.0, left - 1) if left >= 1 else left, now
        if left < 1:
            limits.check(owner, "calls_per_second", float("inf"), "make fewer calls")
