"""What submitters may use, by the limits that an operator sets: each error names its limit."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.end_to_end.refusals import refusal
from tests.server.specs import make_spec
from tests.server.tokens import Caller, Town, town
from thalweg.contract.errors import ThalwegError
from thalweg.server.access.limits import CallRates, LimitTable, OwnerLimits, read_table
from thalweg.v1 import training_service_pb2 as pb


def refused_by(call: Callable[[], object]) -> tuple[str, str, str]:
    """The limit by which a call is refused: whose, which, and how much it is."""
    found = refusal(call)
    assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
    assert "--limits" in found.message
    return found.metadata["name"], found.metadata["limit"], found.metadata["value"]


def create(caller: Caller, job_id: str, workers: int = 1, **request: Any) -> None:
    caller.create(make_spec(epochs=1, workers=workers), job_id, **request)


def cancel(caller: Caller, job_id: str) -> None:
    caller.CancelJob(pb.CancelJobRequest(job_id=job_id))


def submitters(place: Town) -> tuple[Caller, Caller]:
    return place.make("ann", "submitter"), place.make("bob", "submitter")


def test_jobs_and_workers_are_limited_by_owner(tmp_path: Path) -> None:
    limits = read_table({"default": {"running_jobs": 2, "workers": 4}, "owners": {"bob": {"workers": 6}}})
    with town(tmp_path, limits=limits) as place:
        ann, bob = submitters(place)
        create(ann, "a", 2, request_id="a")
        create(ann, "b")
        assert refused_by(lambda: create(ann, "c")) == ("ann", "running_jobs", "2")
        # A call that is repeated makes no further job.
        create(ann, "", 2, request_id="a")
        assert refused_by(lambda: ann.ScaleJob(pb.ScaleJobRequest(job_id="a", workers=4))) == ("ann", "workers", "4")
        ann.ScaleJob(pb.ScaleJobRequest(job_id="a", workers=3))
        cancel(ann, "b")
        assert refused_by(lambda: create(ann, "d", 2)) == ("ann", "workers", "4")
        create(ann, "e", 1)
        assert refused_by(lambda: ann.ResumeJob(pb.ResumeJobRequest(job_id="b"))) == ("ann", "running_jobs", "2")
        cancel(ann, "e")
        ann.ResumeJob(pb.ResumeJobRequest(job_id="b"))
        ann.ResumeJob(pb.ResumeJobRequest(job_id="b"))
        # Another owner has limits of its own, and administrators have none.
        create(bob, "f", 6)
        assert refused_by(lambda: create(bob, "g")) == ("bob", "workers", "6")
        for job_id in ("h", "i", "j"):
            create(place.admin, job_id, 9)


def test_lower_limits_than_what_runs_let_it_shrink(tmp_path: Path) -> None:
    with town(tmp_path) as place:
        ann, _ = submitters(place)
        create(ann, "a", 4)
        create(ann, "b", 4)
    with town(tmp_path, limits=LimitTable(OwnerLimits(running_jobs=1, workers=2))) as place:
        ann = place.bearer(ann.token)
        ann.ScaleJob(pb.ScaleJobRequest(job_id="a", workers=3))
        assert refused_by(lambda: ann.ScaleJob(pb.ScaleJobRequest(job_id="a", workers=4)))[1] == "workers"


def test_what_is_stored_is_limited(tmp_path: Path) -> None:
    with town(tmp_path, limits=LimitTable(OwnerLimits(stored_bytes=1000, uploads=3))) as place:
        ann, bob = submitters(place)
        ann.upload(b"a" * 600)
        assert refused_by(lambda: ann.upload(b"b" * 401)) == ("ann", "stored_bytes", "1,000")
        ann.upload(b"c" * 400)
        # What is there already takes no room.
        ann.upload(b"a" * 600)
        bob.upload(b"a" * 600)
        assert refused_by(lambda: ann.upload(b"d")) == ("ann", "stored_bytes", "1,000")
        # An upload that broke off leaves no trace in the count.
        assert refusal(lambda: bob.upload(b"e" * 300, b"e" * 10)).reason == "INVALID_ARGUMENT"
        for content in (b"f", b"g"):
            bob.upload(content)
        assert refused_by(lambda: bob.upload(b"h")) == ("bob", "uploads", "3")
        create(ann, "a")
    with town(tmp_path, limits=LimitTable(OwnerLimits(stored_bytes=999))) as place:
        ann = place.bearer(ann.token)
        assert refused_by(lambda: create(ann, "b")) == ("ann", "stored_bytes", "999")


def test_calls_are_limited_and_come_back_with_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    with town(tmp_path, limits=LimitTable(OwnerLimits(calls_per_second=2))) as place:
        ann, bob = submitters(place)
        monkeypatch.setattr(place.server._quotas._rates, "_clock", lambda: now[0])
        for _ in range(2):
            ann.listed()
        assert refused_by(ann.listed) == ("ann", "calls_per_second", "2")
        bob.listed()
        now[0] = 0.5
        ann.listed()
        assert refused_by(ann.listed)[1] == "calls_per_second"
        for _ in range(9):
            place.admin.listed()


@pytest.mark.parametrize("rate", [0, 0.5, 1, 3.0])
def test_no_more_calls_come_through_than_the_rate(rate: float) -> None:
    now = 0.0
    rates, made = CallRates(LimitTable(OwnerLimits(calls_per_second=rate)), lambda: now), 0
    for _ in range(1000):
        with suppress(ThalwegError):
            rates.count("ann")
            made += 1
        now += 0.01
    most = max(1, rate) + 10 * rate if rate else 0
    assert most - 1 <= made <= most


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"defaults": {}}, "defaults"),
        ({"default": 3}, "default"),
        ({"default": {"jobs": 3}}, "default.jobs"),
        ({"default": {"workers": -1}}, "default.workers"),
        ({"default": {"workers": 1.5}}, "default.workers"),
        ({"default": {"workers": True}}, "default.workers"),
        ({"default": {"calls_per_second": float("nan")}}, "default.calls_per_second"),
        ({"owners": {"ann": 3}}, "owners.ann"),
        ({"owners": {"ann": {"workers": "2"}}}, "owners.ann.workers"),
    ],
)
def test_a_wrong_table_is_refused(content: dict[str, Any], field: str) -> None:
    with pytest.raises(ThalwegError) as refused:
        read_table(content)
    assert [violation.field for violation in refused.value.violations] == [field]


def test_named_owners_replace_some_values() -> None:
    table = read_table({"default": {"workers": 4, "uploads": 9}, "owners": {"ann": {"workers": 8, "calls_per_second": 0.5}}})
    assert table.of("ann") == OwnerLimits(workers=8, uploads=9, calls_per_second=0.5)
    assert table.of("bob") == OwnerLimits(workers=4, uploads=9)
