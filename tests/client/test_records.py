"""What a server reports, as plain values."""

from datetime import UTC, datetime

from thalweg.client import (
    CheckpointFailed,
    Checkpoints,
    CheckpointWritten,
    Contributions,
    Exchange,
    Progress,
    StepsTaken,
    records,
)
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def event(**kind: object) -> pb.Event:
    message = pb.Event(sequence=5, **kind)  # type: ignore[arg-type]
    message.time.FromDatetime(NOW)
    return message


def test_checkpoints_are_told() -> None:
    written = pb.CheckpointWritten(version=600, bytes=4096, seconds=0.5)
    assert records.event(event(checkpoint_written=written)) == CheckpointWritten(5, NOW, 600, 4096, 0.5)
    failed = pb.CheckpointFailed(version=600, problem="the disk is full")
    assert records.event(event(checkpoint_failed=failed)) == CheckpointFailed(5, NOW, 600, "the disk is full")


def test_progress_has_its_counters() -> None:
    contributions = {name: number for number, name in enumerate(job_pb2.Contributions.DESCRIPTOR.fields_by_name, 1)}
    checkpoints = {"written": 3, "failed": 1, "step": 500}
    message = job_pb2.Progress(
        step=510,
        contributions=job_pb2.Contributions(**contributions),
        checkpoints=job_pb2.Checkpoints(**checkpoints),
        exchange=job_pb2.Exchange(gradient_bytes=7, parameter_bytes=8),
    )
    progress = records.progress(message)
    assert progress.contributions == Contributions(**contributions)
    assert progress.checkpoints == Checkpoints(**checkpoints)
    assert progress.exchange == Exchange(7, 8)
    taken = records.event(event(steps_taken=pb.StepsTaken(first_step=509, losses=[0.5], progress=message)))
    assert isinstance(taken, StepsTaken)
    assert taken.progress == progress


def test_an_older_server_counts_nothing() -> None:
    progress = records.progress(job_pb2.Progress())
    assert isinstance(progress, Progress)
    assert (progress.contributions, progress.checkpoints, progress.exchange) == (Contributions(), Checkpoints(), Exchange())


def test_an_event_that_is_not_known_is_left_out() -> None:
    assert records.event(pb.Event(sequence=5)) is None
