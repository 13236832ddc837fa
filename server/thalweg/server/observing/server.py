"""The metrics of a server: read from what its jobs know, when they are asked for."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate, islice

from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from thalweg.contract.states import ENDED, state_name, waiting_name
from thalweg.server.deciding.coordinator import Phase
from thalweg.server.driving.job.driver import JobDriver
from thalweg.server.driving.jobs import Jobs
from thalweg.server.observing.exposition import Families, counter, counters, gauge, gauges
from thalweg.server.tally import BOUNDS, Durations, Tally
from thalweg.v1 import job_pb2

# How many jobs have series of their own: those that were accepted first. Others count in the sums alone.
MAX_JOBS = 200
# After this many jobs the event loop does something else.
_JOBS_AT_ONCE = 20
# The names of what became of contributions, as `job_pb2.Contributions` has them.
_OUTCOMES = ("applied", "duplicate", "late", "stale_incarnation", "unknown")


class ServerSource:
    """Tells of the jobs of one server."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def unready(self) -> str:
        """Why calls cannot do what they are for."""
        if self._jobs.stopping:
            return "stopping"
        if self._jobs.cluster.draining.is_set():
            return "draining"
        if not self._jobs.upkeep.started:
            return "starting"
        if self._jobs.cluster.draining.is_set():
            return "the server is being drained"
        return "the data folder is not writable" if self._jobs.journal.room.shortage else ""

    async def observe(self) -> Families:
        """What is known in the event loop."""
        jobs = self._jobs
        states: Counter[str] = Counter(dict.fromkeys(("queued", "running", "paused", "ending"), 0))
        reasons = Counter(dict.fromkeys(map(waiting_name, job_pb2.WaitingFor.values()[1:]), 0))
        runs = list(jobs.lives.runs.of.values())
        for number, run in enumerate(runs, 1):
            state = self._state(run)
            states[state] += 1
            if state != "ending" and not run.job.progress.workers:
                waiting_for, _ = jobs.places.waiting(run)
                reasons[waiting_name(waiting_for)] += 1
            elif run.job.waiting_for:
                reasons[waiting_name(run.job.waiting_for)] += 1
            if number % _JOBS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return [
            gauges("thalweg_jobs", "Jobs that have not ended, by state.", "state", states.items()),
            gauges("thalweg_jobs_waiting", "Jobs that wait, by what they wait for.", "reason", reasons.items()),
            counter("thalweg_jobs_accepted", "Jobs that were accepted.", jobs.accepted),
            counters("thalweg_jobs_ended", "Jobs that have ended, by state.", "state", self._ended()),
            gauge("thalweg_workers", "Workers that are connected.", sum(run.job.progress.workers for run in runs)),
            *_of_training(jobs.lives.runs.tally()),
            *self._of_machine(),
            *self._of_jobs(runs),
        ]

    def inspect(self) -> Families:
        """The disk of the data folder."""
        disk = os.statvfs(self._jobs.storage.folder)
        return [
            gauge("thalweg_disk_free_bytes", "Free space for the data folder.", disk.f_bavail * disk.f_frsize),
            gauge("thalweg_disk_size_bytes", "Size of the file system of the data folder.", disk.f_blocks * disk.f_frsize),
        ]

    def _state(self, run: JobDriver) -> str:
        if self._jobs.lives.ending(run.job.id):
            return "ending"
        return "paused" if run.job.paused else state_name(run.job.state).lower()

    def _ended(self) -> Iterable[tuple[str, float]]:
        return [(state_name(state).lower(), self._jobs.lives.runs.ended[state]) for state in sorted(ENDED)]

    def _of_machine(self) -> Families:
        jobs = self._jobs
        fleets = jobs.places.fleets.attending
        shortage = jobs.journal.room.shortage
        return [
            gauge("thalweg_fleets", "Fleets that are connected.", len(fleets)),
            gauge("thalweg_fleet_slots", "CPU slots of the fleets.", sum(fleet.slots for fleet in fleets)),
            gauge("thalweg_fleet_slots_allotted", "CPU slots that jobs have.", sum(fleet.allotted for fleet in fleets)),
            gauge("thalweg_shards", "Shards that are connected.", len(jobs.shards.attending)),
            counter("thalweg_shards_lost", "Shards whose streams have ended.", jobs.shards_lost),
            gauge("thalweg_disk_shortage", "1 while the data folder cannot be written.", shortage is not None),
            gauge("thalweg_events_pending", "Events of jobs that are not on disk yet.", jobs.journal.pending),
            counter("thalweg_unresponsive_seconds", "Seconds for which the server heard no one.", jobs.upkeep.missed),
        ]

    def _of_jobs(self, runs: list[JobDriver]) -> Families:
        """What each job does. The series of a job end with it."""
        shown = [(run.job.id, run) for run in islice(runs, MAX_JOBS)]
        return [
            gauge("thalweg_jobs_without_series", "Jobs that are too many to have series of their own.", len(runs) - len(shown)),
            gauges(
                "thalweg_job_workers",
                "Workers of a job that are connected.",
                "job_id",
                [(job_id, run.job.progress.workers) for job_id, run in shown],
            ),
            gauges(
                "thalweg_job_workers_wanted",
                "Workers that a job wants; 0 while it is paused.",
                "job_id",
                [(job_id, 0 if run.job.paused else run.job.spec.training.workers) for job_id, run in shown],
            ),
            counters(
                "thalweg_job_steps",
                "Steps that a job has taken since it began or was last resumed.",
                "job_id",
                [(job_id, run.telemetry.steps) for job_id, run in shown],
            ),
            gauges(
                "thalweg_job_progress_ratio",
                "The part of a job's steps that is done, from 0 to 1; 0 until their number is known.",
                "job_id",
                [(job_id, _ratio(run.job.progress)) for job_id, run in shown],
            ),
            gauges(
                "thalweg_job_training",
                "1 while a job takes steps, 0 while it waits, prepares, evaluates or ends.",
                "job_id",
                [(job_id, run.coordinator.phase is Phase.TRAINING and run.job.progress.workers > 0) for job_id, run in shown],
            ),
        ]


def _ratio(progress: job_pb2.Progress) -> float:
    return progress.step / progress.total_steps if progress.total_steps else 0.0


def _of_training(tally: Tally) -> Families:
    counts = tally.counts
    checkpoints = [(result, counts[result]) for result in ("written", "failed")]
    return [
        counter("thalweg_steps", "Steps that were taken, of all jobs.", sum(tally.steps.counts)),
        _histogram("thalweg_step_duration_seconds", "The time of a step, without evaluations and waiting.", tally.steps),
        counter("thalweg_samples", "Samples that were differentiated for steps.", counts["samples"]),
        counter("thalweg_received_bytes", "Bytes of gradients from workers.", counts["gradient_bytes"]),
        counter("thalweg_sent_bytes", "Bytes of parameters to workers.", counts["parameter_bytes"]),
        counters(
            "thalweg_contributions",
            "Contributions in chunks, by what became of them.",
            "result",
            [(outcome, counts[outcome]) for outcome in _OUTCOMES],
        ),
        counter("thalweg_tasks_reissued", "Tasks that a second worker got as well.", counts["reissued_tasks"]),
        counter("thalweg_workers_lost", "Workers whose streams ended before their job did.", counts["lost_workers"]),
        counters("thalweg_checkpoints", "Checkpoints, by result.", "result", checkpoints),
    ]


def _histogram(name: str, meaning: str, durations: Durations) -> Metric:
    bounds = [*map(floatToGoString, BOUNDS), "+Inf"]
    buckets = list(zip(bounds, accumulate(durations.counts), strict=True))
    return HistogramMetricFamily(name, meaning, buckets=buckets, sum_value=durations.seconds)
