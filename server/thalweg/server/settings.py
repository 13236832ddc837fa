"""How a server runs jobs, whatever they are."""

from dataclasses import dataclass

# A worker that is silent for this long counts as lost; it sends this many heartbeats in that time.
SILENCE_SECONDS = 10.0
HEARTBEATS = 5
# The interval between checkpoints: a restart repeats about as much at most.
CHECKPOINT_SECONDS = 10.0
# How long uploads that no job uses are kept, and what arrived of those that broke off.
KEEP_UPLOADS_SECONDS = 24 * 3600.0
# Checkpoints that are kept of a job: the last one, and the one before it in case it is damaged.
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class RunSettings:
    """What belongs to the server and not to a job: times, in seconds, and whether jobs may have code of their own.

    No result depends on them.
    """

    silence_seconds: float = SILENCE_SECONDS
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    allow_code: bool = False
    # How long results are kept of jobs that have ended; None for good.
    keep_results_seconds: float | None = None

    @property
    def heartbeat_seconds(self) -> float:
        """How often workers send heartbeats."""
        return self.silence_seconds / HEARTBEATS


DEFAULT_SETTINGS = RunSettings()
