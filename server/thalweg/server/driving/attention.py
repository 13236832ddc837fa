"""How long a server did not listen: its own silence must not be mistaken for that of its peers."""

from thalweg.server.telemetry import Clock

# An event loop is never quite on time. Up to this share of the time after which a peer counts as lost, that does not matter.
_NEGLIGIBLE = 0.05


class Attention:
    """Measures how late an event loop wakes that sleeps `seconds` at a time.

    Whatever keeps it from that (a long computation, a stopped process, a machine without time for it) also kept it from what
    peers sent meanwhile. `silence_seconds` is the time after which a silent peer counts as lost.
    """

    def __init__(self, seconds: float, silence_seconds: float, clock: Clock) -> None:
        self._seconds = seconds
        self._negligible = silence_seconds * _NEGLIGIBLE
        self._clock = clock
        self._woke = clock()

    def missed(self) -> float:
        """To be called whenever the loop wakes: for how many seconds it listened to nobody since it last woke."""
        now = self._clock()
        late, self._woke = now - self._woke - self._seconds, now
        return late if late > self._negligible else 0.0
