"""The audit log of a server: JSON lines, each of which says who did what, chained so that a change of a line shows.

A line ends with `chain`: the SHA-256 of the chain of the line before and of the line's own bytes without it. The first line of a
file has the chain before it as `after`, so that files are verified one by one or in their order. Somebody who can write the file
can also compute it anew from some line on: compare the last chain with one that was noted elsewhere.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

Record: TypeAlias = Mapping[str, "str | int | Record"]

# The chain before the first line of the first file.
START = "0" * 64
_CHAIN = ', "chain": "'
_TAIL = len(_CHAIN) + len(START) + len('"}')


class Verified(NamedTuple):
    """What is in files without a broken line: how many lines, and the chain of the last one."""

    lines: int
    chain: str


class BrokenError(Exception):
    """A line does not follow from those before it. `line` counts from 1."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}, line {line}: {problem}")
        self.path = path
        self.line = line
        self.problem = problem


def line_of(record: Record, before: str) -> tuple[bytes, str]:
    """A record as a line, after one with a chain, and the line's own chain. The record must not be empty."""
    body = json.dumps(record, ensure_ascii=True)
    chain = _chain(before, body)
    return f'{body[:-1]}{_CHAIN}{chain}"}}\n'.encode(), chain


def chain_of(line: bytes) -> str:
    """The chain of a line, as it says. Raises ValueError if it is not one."""
    return _parts(line)[1]


def number_of(line: bytes) -> int:
    """The number of a line. Raises ValueError if it is not one."""
    return int(json.loads(_parts(line)[0])["number"])


def verify(paths: Iterable[Path]) -> Verified:
    """Verifies files, in their order. Raises BrokenError with the first line that is broken, and OSError."""
    lines, before = 0, ""
    for path in paths:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    body, chain = _parts(line)
                    if number == 1:
                        after = str(json.loads(body).get("after", ""))
                        if before and after != before:
                            raise ValueError("is not the line after the last one of the file before")
                        before = after
                    if chain != _chain(before, body):
                        raise ValueError("was changed, or lines before it are missing")
                except ValueError as error:
                    raise BrokenError(path, number, str(error)) from error
                before = chain
                lines += 1
    return Verified(lines, before)


def _chain(before: str, body: str) -> str:
    return hashlib.sha256(f"{before}{body}".encode()).hexdigest()


def _parts(line: bytes) -> tuple[str, str]:
    """The JSON of a line without its chain, and the chain."""
    text = line.decode("ascii", "replace")
    start = len(text) - _TAIL - 1
    if not text.endswith('"}\n') or start < 0 or not text.startswith(_CHAIN, start):
        raise ValueError("is not a line of an audit log, or is not whole")
    return f"{text[:start]}}}", text[start + len(_CHAIN) : -len('"}\n')]
