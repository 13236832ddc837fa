"""What the server says, as the values that the page shows. Text from users stays text: the page escapes it."""

from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from thalweg.client import records
from thalweg.client.records import Event, Metrics
from thalweg.client.web.curves import rounded
from thalweg.contract.states import ENDED, state_name, waiting_name
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

# The workers of a job that are listed.
MAX_WORKERS = 200
# Names of workers in one entry of the log.
_MAX_NAMES = 8


def row(job: job_pb2.Job) -> dict[str, Any]:
    """A job as a line of the list."""
    progress, result, known = job.progress, job.result, records.progress(job.progress)
    ended = job.state in ENDED
    row: dict[str, Any] = {
        "id": job.id,
        "name": job.spec.name,
        "owner": job.owner,
        "shared": job.shared,
        "state": state_name(job.state),
        "status": job.status,
        "waiting_for": waiting_name(job.waiting_for) if job.waiting_for else "",
        "paused": job.paused,
        "priority": job.spec.priority,
        "step": result.steps or progress.step,
        "total_steps": progress.total_steps,
        "epoch": result.epochs or progress.epoch,
        "total_epochs": progress.total_epochs or job.spec.training.epochs,
        "workers": 0 if ended else progress.workers,
        "wanted_workers": job.spec.training.workers,
        "created": _seconds(job.create_time),
        "began": _seconds(job.start_time) if job.HasField("start_time") else None,
        "ended": _seconds(job.end_time) if job.HasField("end_time") else None,
        "seconds_left": _seconds_left(job),
        "samples_per_second": rounded(result.samples_per_second or progress.samples_per_second),
        "loss": rounded(result.train.loss) if result.HasField("train") else _optional(known.loss),
        "validation": metrics(records.metrics(result, "validation") or known.validation),
    }
    if job.error:
        row["error"] = job.error
    return row


def job(job: job_pb2.Job) -> dict[str, Any]:
    """A job as its page shows it."""
    progress = records.progress(job.progress)
    return row(job) | {
        "learning_rate": _optional(progress.learning_rate),
        "contributions": _counters(progress.contributions),
        "checkpoints": _counters(progress.checkpoints),
        "exchange": _counters(progress.exchange),
        "machine_kinds": progress.machine_kinds,
        "seconds": rounded(job.result.seconds),
        "train": metrics(records.metrics(job.result, "train")),
        "test": metrics(records.metrics(job.result, "test")),
        "weights_sha256": job.result.weights_sha256,
    }


def workers(told: pb.ListWorkersResponse, spec: job_pb2.JobSpec) -> dict[str, Any]:
    """The workers of a job, and how long its steps take."""
    samples = spec.training.batch_size / max(1, spec.training.microbatches)
    return {
        "total": told.total,
        "seconds_per_step": rounded(told.seconds_per_step),
        "list": [
            {
                "name": each.name,
                "node": each.node,
                "prepared": each.prepared,
                "samples_per_second": rounded(each.microbatches_per_second * samples),
                "share": rounded(each.share),
                "tasks": each.tasks,
                "task_seconds": round(each.task_seconds, 1),
                "busy": round(each.busy, 3),
                "silent_seconds": round(each.silent_seconds),
                "lost_on_node": each.lost_on_node,
            }
            for each in told.workers[:MAX_WORKERS]
        ],
    }


def metrics(found: Metrics | None) -> dict[str, float | None] | None:
    """Metrics by name, None if nothing was measured."""
    if found is None:
        return None
    accuracy = {} if found.accuracy is None else {"accuracy": rounded(found.accuracy)}
    return {"loss": rounded(found.loss)} | accuracy | {name: rounded(value) for name, value in found.values.items()}


def log_entry(event: Event | None) -> dict[str, Any] | None:
    """An event as an entry of a job's log; None for one that the curves show."""
    match event:
        case records.StateChanged():
            text = f"{event.state.lower()}: {event.error or event.status}".rstrip(": ")
            return _entry(event.time, "error" if event.error else "state", text)
        case records.WorkersChanged():
            moves = [f"{_names(names)} {verb}" for names, verb in ((event.joined, "joined"), (event.left, "left")) if names]
            plural = "" if event.workers == 1 else "s"
            return _entry(event.time, "workers", "; ".join([*moves, f"{event.workers} worker{plural} now"]))
        case records.Notice():
            return _entry(event.time, "notice", event.text)
        case records.CheckpointWritten():
            return _entry(event.time, "checkpoint", f"checkpoint after {event.version:,} updates written")
        case records.CheckpointFailed():
            return _entry(event.time, "error", f"checkpoint after {event.version:,} updates failed: {event.problem}")
        case _:
            return None


def _names(names: tuple[str, ...]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _entry(when: datetime, kind: str, text: str) -> dict[str, Any]:
    return {"time": when.timestamp(), "kind": kind, "text": text}


def _counters(counters: object) -> dict[str, int]:
    return dict(vars(counters))


def _seconds(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos // 1_000_000 / 1000


def _optional(value: float | None) -> float | None:
    return None if value is None else rounded(value)


def _seconds_left(job: job_pb2.Job) -> float | None:
    """The time left at the recent pace, None if it is not known."""
    progress = job.progress
    left = progress.total_steps - progress.step
    if job.state in ENDED or not progress.total_steps or not progress.workers or progress.samples_per_second <= 0:
        return None
    # The last step of an epoch may have fewer samples, so this is an upper bound.
    return rounded(left * job.spec.training.batch_size / progress.samples_per_second)
