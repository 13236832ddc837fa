"""Besieges a server in each way, and prints how fast a job goes on there, side by side with how fast it goes without.

Ends with exit code 1 if the job does not end as it would have, or nobody else is let in.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from thalweg.contract.process import prepare


def main() -> int:
    """Runs the command."""
    prepare()
    from tests.siege.fortress import Siege, fortress, speed, steps_of  # imports gRPC

    parser = argparse.ArgumentParser(prog="python -m tests.siege", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each way is tried (5)")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="how long, with and without (4)")
    options = parser.parse_args()
    sieges = [
        Siege("connections", 10_000, False),
        Siege("readers", 100, True),
        Siege("uploads", 1_000, True),
        Siege("silent", 500, True),
        Siege("refused", 200, False),
    ]
    with tempfile.TemporaryDirectory() as home, fortress(Path(home)) as server, server.training(1_000_000) as job:
        while steps_of(job) < 100:
            time.sleep(0.1)
        for siege in sieges:
            without, within, answers, most = [], [], [], 0
            for _ in range(options.rounds):
                without.append(speed(job, options.seconds))
                with server.besieged(siege, job.id):
                    # To begin takes the processor that the job needs, and is over soon.
                    time.sleep(options.seconds)
                    within.append(speed(job, options.seconds))
                    began = time.monotonic()
                    with server.client() as client:
                        list(client.jobs())
                    answers.append(time.monotonic() - began)
                    most = max(most, server.mib)
            before, then = statistics.median(without), statistics.median(within)
            sys.stdout.write(
                f"{siege.number:,} {siege.kind}: {then:,.0f} steps/s, {before:,.0f} without: {then / max(before, 1e-9):.2f}; "
                f"another client waits {max(answers):.2f} s at most; server {most} MiB\n"
            )
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
