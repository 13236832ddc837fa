"""On how many kinds of machines a job's workers run: equal bits are promised for one kind (docs/guarantees.md, 1).

Pure, as the coordinator that asks it.
"""

from collections.abc import Iterable
from typing import TypeAlias

# What the bits of a worker's results depend on besides the job, as it reports it: names and values, in the order of the names.
Premises: TypeAlias = tuple[tuple[str, str], ...]

# The maximum number of kinds that are distinguished. A checkpoint holds them.
MAX_KINDS = 32
# So many differences are named; the others are counted.
_MAX_NAMED = 3
_NOTHING = "not reported"

ADVICE = (
    "run workers on machines with the same processor and the same releases of the libraries, resume the job to continue with "
    "other machines, or give it training.mixed_machines = true"
)


class Machines:
    """The kinds of machines of one job's workers.

    The first worker of a run sets the kind that the others must be of, unless `mixed` allows any. `kinds` are those that workers
    were admitted on, at most `MAX_KINDS`; `earlier` are those that computed what a checkpoint holds.
    """

    def __init__(self, mixed: bool, earlier: Iterable[Premises] = ()) -> None:
        self._mixed = mixed
        self._first: Premises | None = None
        self.kinds: tuple[Premises, ...] = tuple(earlier)[:MAX_KINDS]
        self._lasting = self.kinds
        self._contributed = False

    def problem(self, premises: Premises) -> str:
        """Why a worker's results would have other bits than those of the run's first worker; empty if it can be admitted."""
        if self._mixed or self._first is None or premises == self._first:
            return ""
        return _difference(premises, self._first, "the first worker's")

    def admit(self, premises: Premises) -> str:
        """Records an admitted worker. Gives words for people if there was none of its kind, but some of others."""
        if self._first is None:
            self._first = premises
        if premises in self.kinds or len(self.kinds) == MAX_KINDS:
            return ""
        before, self.kinds = self.kinds, (*self.kinds, premises)
        if not before:
            return ""
        change = _difference(premises, before[-1], "before")
        return f"from here on bits may differ from those of a run on machines of one kind: {change}"

    def contributed(self) -> None:
        """What the admitted workers computed is part of what the job learnt."""
        self._contributed, self._lasting = True, self.kinds

    def all_left(self) -> None:
        """No admitted worker is left. If none contributed anything in this run, the next one sets the kind of machines."""
        if not self._contributed:
            self.begin_anew()

    def begin_anew(self) -> None:
        """The next worker sets the kind of machines, as at the begin of a run. Kinds that contributed nothing are forgotten."""
        self._first, self.kinds, self._contributed = None, self._lasting, False


def _difference(premises: Premises, others: Premises, whose: str) -> str:
    """What differs, with both values, in words for people."""
    ours, theirs = dict(premises), dict(others)
    names = [name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]
    named = [f"{name}: {ours.get(name, _NOTHING)}, {whose} {theirs.get(name, _NOTHING)}" for name in names[:_MAX_NAMED]]
    more = f"; and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return "; ".join(named) + more
