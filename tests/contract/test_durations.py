"""Time spans as people write them."""

import pytest

from thalweg.contract.durations import duration_text, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [
        ("90s", 90, "90s"),
        ("30m", 1800, "30m"),
        ("12h", 43200, "12h"),
        ("24h", 86400, "1d"),
        ("7d", 604800, "7d"),
        ("1.5d", 129600, "36h"),
        (" 0.5s ", 0.5, "0.5s"),
        ("0d", 0, "0s"),
    ],
)
def test_a_time_span_is_a_number_and_a_unit(text: str, seconds: float, shown: str) -> None:
    assert parse_duration(text) == seconds
    assert duration_text(seconds) == shown


@pytest.mark.parametrize("text", ["", "5", "d", "-1d", "1 d", "1w", "1e3s", "inf", "1d12h"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time span; write a number and a unit, as in 90s, 30m, 12h or 7d"):
        parse_duration(text)
