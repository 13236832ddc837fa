"""The stories of a server's jobs: of all that go on, and of those that ended last."""

from thalweg.server.deciding.story import Story

# Stories of jobs that have ended are kept up to this number, as long as the server runs.
MAX_ENDED = 100


class Stories:
    """Stories by job."""

    def __init__(self) -> None:
        self._open: dict[str, Story] = {}
        self._closed: dict[str, Story] = {}  # the one that ended last comes last

    def open(self, job_id: str) -> Story:
        """The story of a job, which goes on."""
        story = self._open[job_id] = self.find(job_id) or Story()
        self._closed.pop(job_id, None)
        return story

    def close(self, job_id: str, forget: bool) -> None:
        """A job has ended. Forgets its story, or that of the job that ended first, if there are too many."""
        story = self._open.pop(job_id)
        if not forget:
            self._closed[job_id] = story
        if len(self._closed) > MAX_ENDED:
            del self._closed[next(iter(self._closed))]

    def find(self, job_id: str) -> Story | None:
        """The story of a job; None if this server has nothing to tell of it."""
        return self._open.get(job_id) or self._closed.get(job_id)
