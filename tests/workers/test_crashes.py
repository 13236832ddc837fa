"""What a log says of a process that crashed, in the words of `faulthandler`."""

from pathlib import Path

import pytest

import thalweg.workers.worker
from thalweg.workers.crashes import LastWords, last_words

FOLDER = f"/home/anna/.cache/thalweg/code/{'0f' * 32}"
OURS = f'  File "{thalweg.workers.worker.__file__}", line 9 in run\n'
INSTALLED = f'  File "{pytest.__file__}", line 3 in dot\n'
WORKER = f'Thread 0x00007f2853 [work] (most recent call first):\n{INSTALLED}  File "{FOLDER}/nets.py", line 7 in loss\n{OURS}'
IDLE = f"Thread 0x00007f2854 (most recent call first):\n{INSTALLED}{OURS}"
# A thread of a library's own, which runs no Python.
FOREIGN = "Fatal Python error: Segmentation fault\n\n"
FATAL = "Fatal Python error: Aborted\n\n"
THEIRS = f'Current thread 0x00007f2855 (most recent call first):\n  File "{FOLDER}/sub/more.py", line 8 in run\n{INSTALLED}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FOREIGN + IDLE + WORKER, "Segmentation fault (at nets.py:7 in loss)"),
        (FOREIGN + IDLE, f"Segmentation fault (at {pytest.__file__}:3 in dot)"),
        (FOREIGN + OURS, ""),
        (FATAL + WORKER + IDLE + THEIRS, "Aborted (at sub/more.py:8 in run)"),
        (FATAL + WORKER + "what others print\n" + FOREIGN + WORKER, "Segmentation fault (at nets.py:7 in loss)"),
        (f"Timeout (0:00:20)!\n{IDLE}{WORKER}", "it held Python's lock for too long (at nets.py:7 in loss)"),
        (FATAL + f"Current thread 0x00007f2853 (most recent call first):\n{OURS}", "Aborted"),
        ("Stack (most recent call first):\n" + OURS, ""),
        ("", ""),
    ],
)
def test_last_words(tmp_path: Path, text: str, words: str) -> None:
    log = tmp_path / "log"
    log.write_text(f"before: \x1b[31m\n{text}\nExtension modules: numpy (total: 1)\n*** SIGSEGV received at time=1\n")
    assert str(last_words(str(log))) == words


def test_no_more_is_read_than_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(FATAL + WORKER + "x" * (1 << 20))
    assert last_words(str(log)) == LastWords()
    log.write_text("x" * (1 << 22) + "\n" + FATAL + WORKER)
    assert last_words(str(log)) == LastWords("Aborted", "nets.py:7 in loss")


def test_a_log_that_is_gone(tmp_path: Path) -> None:
    assert last_words(str(tmp_path / "log")) == LastWords()
