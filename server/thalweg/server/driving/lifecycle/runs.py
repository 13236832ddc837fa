"""The runs of a server's jobs: what they share, and how one begins."""

from collections import Counter
from collections.abc import Callable
from functools import partial

from thalweg.contract.layout import Slab
from thalweg.server.arrays.budget import Budget
from thalweg.server.arrays.compilation import KernelCompiler
from thalweg.server.arrays.pool import ArithmeticPool
from thalweg.server.arrays.sharded.registry import ShardRegistry
from thalweg.server.deciding.story import Story
from thalweg.server.driving.answers import Answers
from thalweg.server.driving.job.driver import JobDriver
from thalweg.server.driving.job.outcome import JobOutcome
from thalweg.server.driving.job.watching import Watched, unwatched
from thalweg.server.driving.lifecycle.result_writer import ResultWriter
from thalweg.server.settings import RunSettings
from thalweg.server.storage.checkpoints import Checkpoint
from thalweg.server.storage.initial import initial_slab
from thalweg.server.storage.journal import Journal
from thalweg.server.streams.memory_listener import Sharing
from thalweg.server.tally import Tally
from thalweg.server.telemetry import NOTHING_RECORDED, Clock, Recorded
from thalweg.v1 import job_pb2


class Runs:
    """The runs of the jobs that have not ended. Belongs to the server's event loop.

    `of` has them by job, in the order in which the jobs were accepted. `ended` is called when one has ended, `avoid` when one is
    to get workers elsewhere, `left` when a worker has left.
    """

    def __init__(
        self,
        journal: Journal,
        answers: Answers,
        writer: ResultWriter,
        settings: RunSettings,
        sharing: Sharing | None,
        clock: Clock,
        ended: Callable[[JobOutcome], None],
        avoid: Callable[[], object],
        left: Callable[[], object],
    ) -> None:
        self.of: dict[str, JobDriver] = {}
        self.shards = ShardRegistry()
        self._storage = journal.storage
        self._journal = journal
        self._answers = answers
        self._writer = writer
        self._settings = settings
        self._sharing = sharing
        self._clock = clock
        self._ended = ended
        # How many jobs have ended, by their state.
        self.ended: Counter[job_pb2.JobState.ValueType] = Counter()
        # Observes each run that begins.
        self.watched: Watched = unwatched
        self._avoid = avoid
        self._left = left
        self._crew = ArithmeticPool()
        self._budget = Budget()
        self._kernels = KernelCompiler(self._budget)
        self._past = Tally()  # what happened in runs that are over
        self._progressed: set[str] = set()  # jobs of which this server has written a checkpoint

    def begin(
        self, job: job_pb2.Job, story: Story, checkpoint: Checkpoint | None = None, recorded: Recorded = NOTHING_RECORDED
    ) -> JobDriver:
        """Makes a run for a job, in the place of one that was given up, if there is one."""
        self._settle(job.id)
        run = self.of[job.id] = JobDriver(
            job,
            self._journal,
            self._ended,
            lambda made: self._save(run, made),
            settings=self._settings,
            clock=self._clock,
            checkpoint=checkpoint,
            recorded=recorded,
            initial=partial(self._initial, job.spec.model.initial) if job.spec.model.HasField("initial") else None,
            sharing=self._sharing,
            shards=self.shards,
            crew=self._crew,
            kernels=self._kernels,
            budget=self._budget,
            avoid=self._avoid,
            left=self._left,
            story=story,
            watched=self.watched,
        )
        return run

    def forget(self, job_id: str) -> JobDriver | None:
        """A job has ended. Gives its run."""
        self._progressed.discard(job_id)
        self._settle(job_id)
        return self.of.pop(job_id, None)

    def _settle(self, job_id: str) -> None:
        """Keeps what happened in a run that is over, if the job has one."""
        if run := self.of.get(job_id):
            self._past.add(run.telemetry.tally)

    def tally(self) -> Tally:
        """What has happened in all runs."""
        total = Tally()
        total.add(self._past)
        for run in self.of.values():
            total.add(run.telemetry.tally)
        return total

    def close(self) -> None:
        """Ends what the runs share."""
        for run in self.of.values():
            run.release()
        self._crew.close()
        self._kernels.close()

    async def _initial(self, given: job_pb2.Initial, layout: job_pb2.Layout) -> Slab:
        """The parameters that a job starts from. Raises ValueError if they are not its model's."""
        try:
            return await self._journal.run_aside(lambda: initial_slab(layout, self._storage.initial(given.sha256)))
        except (ValueError, OSError) as error:
            raise ValueError(f"model.initial.{given.WhichOneof('source')}: {error}") from error

    def _save(self, run: JobDriver, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint while the run goes on."""

        def written(size: int, seconds: float, problem: str) -> None:
            if not problem:
                self._note_progress(run.job.id)
            # A run that is over takes no more notice of it.
            if not run.over.is_set():
                run.checkpoint_done(checkpoint.position.version, size, seconds, problem)

        self._writer.save(run.job.id, checkpoint, written)

    def _note_progress(self, job_id: str) -> None:
        """A job has a checkpoint that this server has written: if the server dies, this job is hardly the reason."""
        if job_id not in self._progressed:
            self._progressed.add(job_id)
            self._answers.begin(self._journal.room.write(lambda: self._journal.run(self._storage.note_progress, job_id)))
