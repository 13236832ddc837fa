"""What commands print acts on no terminal, whatever others have named their things."""

import io
import json

import pytest
from rich.table import Table
from rich.text import Text

from thalweg.client.cli.output import complain, console, print_json

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b\u202e"
SEEN = r"\x1b]0;title\x07\x1b[2J\x9b\u202e"


class Terminal(io.StringIO):
    """A stdout that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_console_shows_what_would_act_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    table = Table(f"{HOSTILE}head")
    table.add_row(f"{HOSTILE}cell")
    console().print(f"{HOSTILE}line", markup=False)
    console().print(Text(f"{HOSTILE}text", style="red"))
    console().print(table)
    shown = terminal.getvalue()
    # The bell is left out by the console's own rules, and a cell is cut to the width that it was given.
    seen = SEEN.replace(r"\x07", "")
    assert f"{seen}line" in shown
    assert f"{seen}text" in shown
    assert shown.count(r"\x1b]0;title") == 4
    assert "\x1b]" not in shown
    assert "\x1b[2J" not in shown
    assert "\x1b[31m" in shown


def test_a_complaint_shows_what_would_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    complain(f"{HOSTILE}\nsecond")
    assert capsys.readouterr().err == f"thalweg: {SEEN}\nthalweg: second\n"


def test_json_holds_what_would_act_on_the_terminal_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": HOSTILE, "größe": "日本語"}
    print_json(value)
    printed = capsys.readouterr().out
    assert json.loads(printed) == value
    assert printed.removesuffix("\n").isprintable()
    assert "日本語" in printed
