"""How long a job may run. Pure: time comes in."""


class TimeLimit:
    """Counts the time during which a job has workers, on from what earlier runs of it have used.

    `seconds` is the limit, None if there is none; `used` is what counts so far, in seconds.
    """

    def __init__(self, seconds: float | None, used: float) -> None:
        self.seconds = seconds
        self.used = used
        self._last: float | None = None

    def at(self, now: float, working: bool) -> None:
        """The time is now. `working` says whether the job has had workers since the last time."""
        if working and self._last is not None:
            self.used += now - self._last
        self._last = now

    @property
    def reached(self) -> bool:
        """Whether the job has run for as long as it may."""
        return self.seconds is not None and self.used >= self.seconds


def reached(seconds: float, used: float) -> str:
    """Why a job has ended, or cannot be resumed, in words."""
    return f"its time limit is reached: training.max_seconds is {seconds:g}, and it has run for {used:.1f} s"
