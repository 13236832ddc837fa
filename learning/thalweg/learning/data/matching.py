"""Columns that are given for a prediction, matched by name with those that a job was trained on."""

from collections.abc import Collection, Sequence

from thalweg.contract.text import closest
from thalweg.learning.data.errors import DataError, listed


def by_name(names: Sequence[str], subject: str, wanted: Sequence[str], unused: Collection[str]) -> list[int]:
    """The positions of the wanted columns among those of a table, in which columns that are `unused` are ignored.

    Raises DataError, whose message begins with `subject`, if columns are missing or unknown.
    """
    positions = {name: position for position, name in enumerate(names)}
    missing = [name for name in wanted if name not in positions]
    known = {*wanted, *unused}
    others = [name for name in names if name not in known]
    if missing or others:
        problems = [f"lacks {_columns(missing)}{suggestion(missing[0], others)}"] if missing else []
        problems += [f"has {_columns(others)}, which the job was not trained on"] if others else []
        remedy = "name the columns as in the training data" if missing else "remove the columns that are not features"
        raise DataError(f"{subject} {' and '.join(problems)}; {remedy}: {listed(wanted)}")
    return [positions[name] for name in wanted]


def suggestion(name: str, known: Sequence[str]) -> str:
    """A hint at the name that is most probably meant by an unknown one, if there is one."""
    close = closest(name, known) if len(known) <= 1000 else ""
    return f" (did you mean {close!r}?)" if close else ""


def _columns(names: Sequence[str]) -> str:
    return f"the column{'' if len(names) == 1 else 's'} {listed(names)}"
