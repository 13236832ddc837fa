"""Log lines as JSON, log files that are moved away, and what strangers can make a library write to a log."""

import contextvars
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from thalweg.contract.logs import JsonFormatter, LogFile, Sparingly, begin_request, subjects


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


def line(template: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord("thalweg.server", logging.INFO, "", 0, template, values, None)


@pytest.mark.parametrize(
    ("template", "values", "found"),
    [
        ("job %s: began", ("a",), {"job": "a"}),
        ("job %s: worker %s joined", ("a", "f/h/1"), {"job": "a", "worker": "f/h/1"}),
        ("job %s: scaled to %d workers by %s", ("a", 2, "ann"), {"job": "a", "by": "ann"}),
        ("fleet %s joined with %d CPU slots", ("f", 2), {"fleet": "f"}),
        ("100 %% of %.1f s, job %s", (1.5, "a"), {"job": "a"}),
        ("job %s: like job %s", ("a", "b"), {"job": "a"}),
        ("%s; trying again every %g s", ("x", 1.0), {}),
        ("nothing", (), {}),
    ],
)
def test_a_line_says_what_it_is_about(template: str, values: tuple[object, ...], found: dict[str, str]) -> None:
    assert subjects(line(template, *values)) == found


def test_a_line_of_json_has_its_subjects_as_fields() -> None:
    told = json.loads(JsonFormatter().format(line("job %s: worker %s joined", "a", "w")))
    assert told.pop("time").endswith("Z")
    assert told == {
        "level": "INFO",
        "logger": "thalweg.server",
        "message": "job a: worker w joined",
        "job": "a",
        "worker": "w",
    }


def test_a_line_of_json_is_one_line_of_ascii_whatever_peers_say() -> None:
    text = JsonFormatter().format(record("grpc", "\x1b[2J\nfaked \u202e"))
    assert text.isascii()
    assert text.isprintable()
    told = json.loads(text)
    assert told["message"] == "\x1b[2J\nfaked \u202e"
    assert "ValueError" in told["exception"]


def test_a_request_is_known_in_its_own_context_alone() -> None:
    def lines(given: str) -> list[dict[str, Any]]:
        begin_request(given)
        return [json.loads(JsonFormatter().format(line(text))) for text in "ab"]

    (first, again), (other, _) = [contextvars.copy_context().run(lines, given) for given in ("r-1", "")]
    assert first["request"] == again["request"] == "r-1"
    assert len(other["request"]) == 16
    assert len(contextvars.copy_context().run(lines, "x" * 1000)[0]["request"]) == 64
    assert "request" not in json.loads(JsonFormatter().format(line("c")))


def test_a_log_file_is_appended_to_and_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    handler = LogFile(path)
    handler.emit(line("one"))
    path.rename(tmp_path / "log.1")
    handler.emit(line("two"))
    handler.reopen()
    handler.emit(line("three"))
    path.rename(tmp_path / "log.2")
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        handler.reopen()
    handler.emit(line("four"))
    handler.close()
    assert (tmp_path / "log.1").read_text() == "before\none\ntwo\n"
    assert (tmp_path / "log.2").read_text() == "three\nfour\n"
    assert (tmp_path / "log.2").stat().st_mode & 0o007 == 0
