"""How a server runs jobs, whatever they are."""

from dataclasses import dataclass

# A worker that says nothing for so long is taken for lost; it sends heartbeats so many times as often.
SILENCE_SECONDS = 10.0
HEARTBEATS = 5
# Checkpoints are written about so often: what a restart repeats is no more.
CHECKPOINT_SECONDS = 10.0
# Checkpoints that are kept of a job: the last one, and one before in case that it is damaged.
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class RunSettings:
    """What belongs to the server and not to a job: times, in seconds, and whether jobs may have code of their own.

    No result depends on them.
    """

    silence_seconds: float = SILENCE_SECONDS
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    allow_code: bool = False

    @property
    def heartbeat_seconds(self) -> float:
        """How often workers send heartbeats."""
        return self.silence_seconds / HEARTBEATS


DEFAULT_SETTINGS = RunSettings()
