"""What people see of an upload: a bar on a terminal, if it takes a while."""

import io

import pytest
from rich.console import Console

from thalweg.client.cli import bytes_bar as module
from thalweg.client.cli.bytes_bar import BytesBar, bytes_bar


def rendered(bar: BytesBar) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(bar.render())
    return capture.get()


def test_a_bar_shows_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHORT_SECONDS", -1.0)
    bar = BytesBar(Console(file=io.StringIO()))
    assert rendered(bar).strip() == ""
    bar(0, 4_000_000_000)
    assert "0 %" in rendered(bar)
    # Most was there already, and says nothing about the time that the rest takes.
    bar(3_000_000_000, 4_000_000_000)
    assert "uploading" in rendered(bar)
    assert "75 %" in rendered(bar)
    assert "3.0/4.0 GB" in rendered(bar)
    assert "--:--" in rendered(bar)


def test_a_short_upload_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHORT_SECONDS", 1e6)
    bar = BytesBar(Console(file=io.StringIO()))
    bar(5, 10)
    assert rendered(bar).strip() == ""


def test_only_terminals_have_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "_SHORT_SECONDS", -1.0)
    with bytes_bar() as report:
        report(5, 10)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with bytes_bar() as report:
        report(5, 10)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "50 %" in printed.err
