"""A line between two ports of a switch that takes its time and loses frames, made of two TAP devices.

    python wire.py NEAR FAR --delay-ms 50 --jitter-ms 5 --loss-percent 5 --seed 1

Not every kernel has a queue that does this (`tc netem`). Each frame is delayed by itself, none overtakes another, and which are
lost follows from the seed. Says `ready` on stdout when both devices are there. On SIGTERM it says what became of the frames, as
JSON, and ends, and the devices with it. Runs in the switch's network namespace, and imports nothing but the standard library.
"""

import argparse
import fcntl
import json
import os
import random
import select
import signal
import struct
import sys
import time
from collections import deque

_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
# More than any frame has, whatever the MTU.
_MAX_FRAME = 1 << 16
# So many frames wait in each direction; further ones are lost, as a router's buffer would lose them.
_MAX_QUEUE = 10_000


def tap(name: str) -> int:
    """Makes a TAP device and gives its file descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return descriptor


class Direction:
    """The frames on their way from one device to the other."""

    def __init__(self, source: int, sink: int, options: argparse.Namespace) -> None:
        self.source = source
        self._sink = sink
        self._options = options
        self._random = random.Random(f"{options.seed} {options.near} {source}")
        self._frames: deque[tuple[float, bytes]] = deque()
        self.passed = self.lost = 0

    @property
    def due(self) -> float:
        """When the next frame arrives."""
        return self._frames[0][0] if self._frames else float("inf")

    def take(self) -> None:
        """Takes a frame from the source."""
        frame = os.read(self.source, _MAX_FRAME)
        if len(self._frames) >= _MAX_QUEUE or self._random.random() * 100 < self._options.loss_percent:
            self.lost += 1
            return
        delay = self._options.delay_ms + self._random.uniform(-1, 1) * self._options.jitter_ms
        latest = self._frames[-1][0] if self._frames else 0.0
        self._frames.append((max(latest, time.monotonic() + delay / 1000), frame))

    def give(self) -> None:
        """Gives the sink what is due."""
        while self.due <= time.monotonic():
            try:
                os.write(self._sink, self._frames.popleft()[1])
                self.passed += 1
            except OSError:
                # The device is not up, or takes no more.
                self.lost += 1


def main() -> None:
    """Passes frames on until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("near")
    parser.add_argument("far")
    for name in ("--delay-ms", "--jitter-ms", "--loss-percent"):
        parser.add_argument(name, type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    near, far = tap(options.near), tap(options.far)
    directions = (Direction(near, far, options), Direction(far, near, options))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    print("ready", flush=True)  # noqa: T201
    try:
        while True:
            wait = min(direction.due for direction in directions) - time.monotonic()
            ready, _, _ = select.select([near, far], [], [], min(max(wait, 0.0), 1.0))
            for direction in directions:
                if direction.source in ready:
                    direction.take()
                direction.give()
    finally:
        facts = {key: sum(getattr(direction, key) for direction in directions) for key in ("passed", "lost")}
        print(json.dumps(facts), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
