"""What strangers can make a library write to a log."""

import logging
import sys

from thalweg.contract.logs import Sparingly


def record(name: str, text: str) -> logging.LogRecord:
    """A line with a traceback."""
    try:
        raise ValueError(text)
    except ValueError:
        return logging.LogRecord(name, logging.ERROR, "", 0, "%s", (text,), sys.exc_info())


def test_a_library_writes_a_few_lines_a_minute_without_tracebacks() -> None:
    now = [0.0]
    sparingly = Sparingly("grpc", lambda: now[0])
    lines = [record("grpc.aio", str(number)) for number in range(1000)]
    passed = [line for line in lines if sparingly.filter(line)]
    assert [line.getMessage() for line in passed[:-1]] == [str(number) for number in range(9)]
    assert passed[-1].getMessage() == "9 (further lines of grpc are suppressed for a minute)"
    assert [line.exc_info for line in passed] == [None] * 10
    now[0] = 61.0
    assert sparingly.filter(record("grpc", "again"))


def test_lines_of_others_pass_as_they_are() -> None:
    sparingly = Sparingly("grpc")
    lines = [record("thalweg.server", str(number)) for number in range(100)]
    assert all(sparingly.filter(line) and line.exc_info for line in lines)
