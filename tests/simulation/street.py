"""What lies between one imaginary worker of a town and the run that it works for."""

import random
from collections import deque
from collections.abc import Callable

from tests.simulation.town_loop import SimulatedLoop
from tests.simulation.worker import LAYOUT, TRAIN_SAMPLES, ImaginaryWorker, noise
from thalweg.contract import frames
from thalweg.contract.errors import ThalwegError
from thalweg.server.driving.job.driver import JobDriver
from thalweg.v1 import parameter_service_pb2 as pb


class Street:
    """Messages take some time, and keep their order. `complain` hears of what must not happen to a worker."""

    def __init__(self, loop: SimulatedLoop, random_: random.Random, run: JobDriver, complain: Callable[[str], object]) -> None:
        self.run = run
        self.leaf = noise
        self.prepared = pb.Prepared(layout=LAYOUT, train_samples=TRAIN_SAMPLES, metrics=("accuracy",))
        self._loop = loop
        self._complain = complain
        self._seconds = random_.choice([0.0, 0.001, 0.01, 0.05])
        self._down: deque[Callable[[], object]] = deque()
        self._up: deque[Callable[[], object]] = deque()

    def to_worker(self, worker: ImaginaryWorker, message: pb.WorkResponse) -> None:
        """A message on its way to the worker."""
        self._send(self._down, lambda: worker.handle(message) if worker.alive and worker.heard else None)

    def to_server(self, worker: ImaginaryWorker, message: pb.WorkRequest) -> None:
        """A message on its way to the server."""
        request = frames.unpacked(message)

        def arrive() -> None:
            if not (worker.alive and worker.heard):
                return
            try:
                self.run.receive(worker.worker, request)
            except ThalwegError as error:
                self._complain(f"what an honest worker said was refused: {error}")

        self._send(self._up, arrive)

    def _send(self, way: deque[Callable[[], object]], arrival: Callable[[], object]) -> None:
        way.append(arrival)

        def arrive() -> None:
            # Whichever timer comes first takes what was sent first.
            way.popleft()()

        self._loop.after(self._seconds, arrive)

    def evicted(self, worker: ImaginaryWorker, error: ThalwegError | None) -> None:
        """The server ended the worker's stream."""
        if error and not worker.disagrees:
            self._complain(f"an honest worker was refused: {error}")
        if error is None and worker.heard:
            self._complain("a worker that could be heard was taken for lost")
        worker.alive = False

    def let_go(self, worker: ImaginaryWorker) -> None:
        """The server said goodbye."""
        worker.alive = False

    def beat(self, worker: ImaginaryWorker) -> None:
        """A heartbeat, and the next ones."""
        if worker.alive:
            self.to_server(worker, pb.WorkRequest(heartbeat=pb.Heartbeat()))
            self._loop.call_later(worker.heartbeat_seconds, lambda: self.beat(worker))
