"""Time spans as people write them: a number and a unit, such as 90s, 30m, 12h or 7d."""

import re

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_duration(text: str) -> float:
    """The seconds of a time span. Raises ValueError if the text has another form."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([dhms])", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a time span; write a number and a unit, as in 90s, 30m, 12h or 7d")
    return float(found[1]) * _SECONDS[found[2]]


def duration_text(seconds: float) -> str:
    """A time span as `parse_duration` reads it, in the largest unit of which it is a whole number, or else in seconds."""
    unit = next((unit for unit, size in _SECONDS.items() if seconds >= size and seconds % size == 0), "s")
    return f"{seconds / _SECONDS[unit]:g}{unit}"
