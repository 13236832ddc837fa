"""The audit log: who did what, what was refused, and whether a line was changed."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.command import wait_for
from tests.end_to_end.refusals import refusal
from tests.server.specs import make_spec
from tests.server.tokens import town
from thalweg.contract import audit
from thalweg.contract.audit import START, BrokenError, Record, verify
from thalweg.contract.errors import ThalwegError
from thalweg.server.services.guarding.auditing import Audit
from thalweg.server.storage.audit_file import FILE, AuditFile
from thalweg.v1 import training_service_pb2 as pb


def records_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_says_who_did_what_and_what_was_refused(tmp_path: Path) -> None:
    with town(tmp_path, audit=True) as place:
        ann, bob = place.make("ann", "submitter"), place.make("bob", "submitter")
        sha256 = ann.upload(b"content")
        ann.create(make_spec(epochs=1), "hers")
        ann.GetJob(pb.GetJobRequest(job_id="hers"))
        ann.ShareJob(pb.ShareJobRequest(job_id="hers", shared=True))
        refusal(lambda: bob.CancelJob(pb.CancelJobRequest(job_id="hers")))
        ann.ShareJob(pb.ShareJobRequest(job_id="hers"))
        ann.ScaleJob(pb.ScaleJobRequest(job_id="hers", workers=0))
        refusal(lambda: bob.CancelJob(pb.CancelJobRequest(job_id="hers")))
        refusal(lambda: place.bearer("thalweg-no").listed())
        eve = place.make("eve", "viewer")
        refusal(lambda: eve.CreateJob(pb.CreateJobRequest()))
        ann.CancelJob(pb.CancelJobRequest(job_id="hers"))
        place.revoke("bob")
        refusal(bob.listed)
        log = tmp_path / FILE
        # Records are written while the server goes on.
        wait_for(lambda: "TOKEN_ENDED" in log.read_text())
    told = [
        (
            record.get("name", ""),
            record.get("method", record.get("event")),
            record.get("about", ""),
            record.get("outcome", ""),
        )
        for record in records_in(log)
    ]
    assert told == [
        ("", "server started", "", ""),
        ("admin", "CreateToken", {"name": "ann", "role": "submitter"}, "OK"),
        ("admin", "CreateToken", {"name": "bob", "role": "submitter"}, "OK"),
        ("ann", "UploadData", {"sha256": sha256}, "OK"),
        ("ann", "CreateJob", {"job_id": "hers", "shared": "False"}, "OK"),
        ("ann", "ShareJob", {"job_id": "hers", "shared": "True"}, "OK"),
        ("bob", "CancelJob", {"job_id": "hers"}, "PERMISSION_DENIED"),
        ("ann", "ShareJob", {"job_id": "hers", "shared": "False"}, "OK"),
        ("ann", "ScaleJob", {"job_id": "hers", "workers": "0"}, "OK"),
        ("bob", "CancelJob", {"job_id": "hers"}, "JOB_NOT_FOUND"),
        ("", "ListJobs", "", "UNAUTHENTICATED"),
        ("admin", "CreateToken", {"name": "eve", "role": "viewer"}, "OK"),
        ("eve", "CreateJob", "", "PERMISSION_DENIED"),
        ("ann", "CancelJob", {"job_id": "hers"}, "OK"),
        ("admin", "RevokeToken", {"name": "bob"}, "OK"),
        ("bob", "ListJobs", "", "TOKEN_ENDED"),
        ("", "server stopped", "", ""),
    ]
    assert all(record["from"].startswith("ipv4:127.0.0.1:") for record in records_in(log) if "method" in record)
    assert [record["number"] for record in records_in(log)] == list(range(1, len(told) + 1))
    assert log.stat().st_mode & 0o777 == 0o600
    before = verify([log])
    assert before.lines == len(told)
    # A later server continues it.
    with town(tmp_path, audit=True):
        pass
    assert verify([log]).lines == len(told) + 2


def lines(folder: Path, count: int, **settings: Any) -> Path:
    file = AuditFile(folder, **settings)
    for number in range(count):
        file.write([{"name": f"n{number}"}])
    return folder / FILE


@pytest.mark.parametrize(
    ("change", "line", "problem"),
    [
        (lambda text: [*text[:3], text[3].replace("n3", "n4"), *text[4:]], 4, "was changed"),
        (lambda text: [*text[:3], *text[4:]], 4, "lines before it are missing"),
        (lambda text: [text[1], text[0], *text[2:]], 1, "lines before it are missing"),
        (lambda text: [*text[:3], text[2], *text[3:]], 4, "was changed"),
        (lambda text: text[1:], 1, "lines before it are missing"),
        (lambda text: [*text[:5], "not a line\n"], 6, "is not a line"),
        (lambda text: [*text[:5], text[5][:-1]], 6, "is not whole"),
        (lambda text: ["\n", *text], 1, "is not a line"),
        (lambda text: [text[0].replace("}", ' "x": 1}'), *text[1:]], 1, "is not a line"),
    ],
)
def test_the_first_broken_line_is_named(tmp_path: Path, change: Any, line: int, problem: str) -> None:
    path = lines(tmp_path, 6)
    assert verify([path]).lines == 6
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    with pytest.raises(BrokenError, match=problem) as broken:
        verify([path])
    assert broken.value.line == line


def test_a_log_that_was_cut_short_has_another_last_chain(tmp_path: Path) -> None:
    path = lines(tmp_path, 6)
    whole = verify([path])
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert verify([path]).chain != whole.chain


def test_a_full_file_is_followed_by_another(tmp_path: Path) -> None:
    lines(tmp_path, 10, max_bytes=300)
    files = [*sorted(tmp_path.glob("audit-*.jsonl")), tmp_path / FILE]
    assert len(files) >= 3
    assert verify(files).lines == 10
    assert [verify([file]).lines for file in files]
    with pytest.raises(BrokenError, match="is not the line after the last one"):
        verify([files[0], files[2]])
    # Also for a server that starts when the last one is full.
    AuditFile(tmp_path, 1).write([{"name": "later"}])
    assert verify([*sorted(tmp_path.glob("audit-*.jsonl")), tmp_path / FILE]).lines == 11


def test_what_a_crash_left_of_a_line_is_removed(tmp_path: Path) -> None:
    path = lines(tmp_path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number": 4, "na')
    AuditFile(tmp_path).write([{"name": "next"}])
    assert verify([path]).lines == 4
    assert path.read_bytes().startswith(whole)


def test_a_write_that_failed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines(tmp_path, 2)
    file, write = AuditFile(tmp_path), os.write

    def half(descriptor: int, data: memoryview) -> int:
        write(descriptor, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space"):
        file.write([{"name": "lost"}])
    monkeypatch.undo()
    file.write([{"name": "kept"}])
    assert [record["name"] for record in records_in(path)] == ["n0", "n1", "kept"]
    assert verify([path]).lines == 3


def test_a_line_is_chained_to_the_one_before() -> None:
    first, chain = audit.line_of({"number": 1, "name": 'a"\n, "chain": "x'}, START)
    assert audit.chain_of(first) == chain
    assert audit.number_of(first) == 1
    assert first.count(b"\n") == 1
    assert audit.line_of({"number": 1}, chain) != audit.line_of({"number": 1}, START)


def test_refused_calls_are_recorded_up_to_a_bound_and_then_counted() -> None:
    written: list[Record] = []

    async def refuse() -> None:
        log = Audit(written.extend)
        log.start("1")
        for _ in range(1000):
            log.refused("/s/M", "ipv4:1", ThalwegError("UNAUTHENTICATED"))
        await log.stop()

    asyncio.run(refuse())
    assert len([record for record in written if record.get("outcome") == "UNAUTHENTICATED"]) == 100
    assert [record["count"] for record in written if "count" in record] == [900]


def test_records_wait_for_room_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.server.services.guarding.auditing._RETRY_SECONDS", 0.001)
    written: list[Record] = []
    failures = [OSError(28, "No space left on device")] * 3

    def write(records: list[Record]) -> None:
        if failures:
            raise failures.pop()
        written.extend(records)

    async def record() -> None:
        log = Audit(write)
        log.start("1")
        while not written:
            await asyncio.sleep(0.001)
        await log.stop()

    asyncio.run(record())
    assert [entry["event"] for entry in written] == ["server started", "server stopped"]
