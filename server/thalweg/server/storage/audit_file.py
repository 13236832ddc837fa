"""The audit log in a data folder: a file that grows, and those that were full.

All of it blocks. A write that returned is durable.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from thalweg.contract import audit
from thalweg.contract.audit import Record

_log = logging.getLogger(__name__)
FILE = "audit.jsonl"
_MAX_BYTES = 64 << 20
# A line is shorter.
_LAST_BYTES = 1 << 16


class AuditFile:
    """The audit log of a data folder. A full file gets another name, with the number of its last line, and stays as it is."""

    def __init__(self, folder: Path, max_bytes: int = _MAX_BYTES) -> None:
        self._path = folder / FILE
        self._max_bytes = max_bytes
        # The number and the chain of the last line; None until it was looked for.
        self._last: tuple[int, str] | None = None

    def write(self, records: Sequence[Record]) -> None:
        """Appends records. Raises OSError; then none of them counts as written, and they are to be given again."""
        number, chain = self._last or self._find_last()
        size = self._path.stat().st_size if self._path.exists() else 0
        if size > self._max_bytes:
            self._path.rename(self._path.with_name(f"audit-{number:012}.jsonl"))
            size = 0
        lines: list[bytes] = []
        for record in records:
            number += 1
            first = {"after": chain} if not size and not lines else {}
            line, chain = audit.line_of({"number": number} | first | dict(record), chain)
            lines.append(line)
        self._last = None
        with os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab", 0) as file:
            try:
                _write(file.fileno(), b"".join(lines))
            except OSError:
                # A part may be there.
                file.truncate(size)
                raise
        self._last = number, chain

    def _find_last(self) -> tuple[int, str]:
        """The number and the chain of the last line."""
        for path in (self._path, *sorted(self._path.parent.glob("audit-*.jsonl"), reverse=True)):
            if line := _last_line(path):
                return audit.number_of(line), audit.chain_of(line)
        return 0, audit.START


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def _last_line(path: Path) -> bytes:
    """The last line of a file; nothing if it has none. What a crash left of a line is removed."""
    if not path.exists():
        return b""
    with path.open("rb+") as file:
        start = max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES)
        file.seek(start)
        end = file.read()
        whole = end[: end.rfind(b"\n") + 1]
        if whole != end:
            _log.warning("%s: the last line is not whole, and is removed", path)
            file.truncate(start + len(whole))
    return whole[whole.rfind(b"\n", 0, -1) + 1 :]
