"""Text from peers: nothing in it acts on a terminal, and it has bounds."""

import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.contract.errors import ThalwegError, Violation, to_status
from thalweg.contract.text import VisibleFormatter, visible, visible_lines

UNSEEN = ["\x1b", "\x07", "\x00", "\r", "\n", "\t", "\x7f", "\x85", "\x9b", "\u2028", "\u202e", "\u2066", "\u200b", "\ufeff"]


@pytest.mark.parametrize("character", UNSEEN)
def test_what_acts_on_a_terminal_is_written_as_an_escape(character: str) -> None:
    assert visible(f"a{character}b") == f"a{character.encode('unicode_escape').decode()}b"


@pytest.mark.parametrize("text", ["digits", "", "naïve Größe — 5 µs", "日本語", "१२", "a b", "👩\u200d🔬", "C:\\data"])
def test_what_people_write_stays(text: str) -> None:
    assert visible(text) == text


@given(st.text(), st.integers(3, 50))
def test_a_text_is_bounded_and_seen(text: str, limit: int) -> None:
    shown = visible(text, limit)
    assert len(shown) <= limit
    assert visible(shown, limit) == shown
    assert not {unicodedata.category(c) for c in shown.replace("\u200c", "").replace("\u200d", "")} & {
        "Cc",
        "Cf",
        "Zl",
        "Zp",
        "Cs",
    }


def test_a_text_that_is_cut_says_so() -> None:
    assert visible("abcdefgh", 6) == "abc..."
    assert visible("abcdef", 6) == "abcdef"
    assert visible("\x1b" * 3, 11) == "\\x1b\\x1b..."


def test_lines_stay_lines_where_they_may() -> None:
    assert visible_lines("a\x1b\nb\r\n") == "a\\x1b\nb\\r\n"


def test_a_log_record_is_one_line() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "worker %s", ("\x1b[2J\n12:00 INFO faked",), None)
    assert VisibleFormatter("%(levelname)s %(message)s").format(record) == "INFO worker \\x1b[2J\\n12:00 INFO faked"


def test_an_error_that_travels_shows_what_it_quotes() -> None:
    status = to_status(ThalwegError("PROTOCOL_VIOLATION", {"problem": "\x1b[2J"}))
    assert "\\x1b[2J" in status.message
    assert "\x1b" not in status.message
    assert "\\x9b" in to_status(ThalwegError("INVALID_ARGUMENT", violations=[Violation("a", "\x9b31m")])).message
