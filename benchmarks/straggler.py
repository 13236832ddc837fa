"""How much longer a job takes with one worker that is ten times slower than the others.

    python benchmarks/straggler.py [--repeats N] [CASE ...]

For each case: the milliseconds that a step takes with three equal workers, and with one of them slowed tenfold (its process is
stopped nine tenths of the time), medians over the repeats, and the ratio of the two. Runs with and without take turns, so that
what else the machine does falls on both. The target is a ratio below 2; above it, the command ends with exit code 1.
"""

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.end_to_end.faults import slowed
from thalweg.client import Client, StepsTaken, WorkersChanged, local

WORKERS = 3
TARGET = 2.0
# For each case, what is laid over the job `digits`.
CASES: dict[str, dict[str, Any]] = {
    "short steps": {"training.epochs": 120},
    "long steps": {
        "training.epochs": 40,
        "training.batch_size": 512,
        "training.microbatches": 12,
        "model.layers": [{"dense": {"units": 2048}}, {"relu": {}}, {"dense": {"units": 10}}],
    },
}


def milliseconds(client: Client, case: str, slow: bool) -> float:
    """Milliseconds a step, from when all workers are there until the end."""
    job = client.submit("digits", CASES[case] | {"training.workers": WORKERS})
    told: list[StepsTaken] = []
    names: tuple[str, ...] = ()
    with ExitStack() as stack:
        for event in job.watch():
            if isinstance(event, WorkersChanged):
                names = event.names
            elif isinstance(event, StepsTaken) and (told or len(names) == WORKERS):
                if not told and slow:
                    stack.enter_context(slowed(names[0]))
                told.append(event)
    job.wait()
    steps = sum(len(event.losses) for event in told[1:])
    return (told[-1].time - told[0].time).total_seconds() / steps * 1000


def main() -> int:
    """Runs the cases and prints a line for each. Gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all, if none is given")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    missed = False
    with tempfile.TemporaryDirectory() as name, local(workers=WORKERS, data=Path(name) / "jobs") as client:
        for case in options.cases or CASES:
            measured: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(options.repeats):
                for slow, times in measured.items():
                    times.append(milliseconds(client, case, slow))
            equal, straggling = (statistics.median(measured[slow]) for slow in (False, True))
            spread = " and ".join(f"{min(times):.2f} to {max(times):.2f}" for times in measured.values())
            ratio = straggling / equal
            print(f"{case:<12} {equal:8.2f} ms a step, {straggling:8.2f} ms with a straggler: ratio {ratio:.2f}   ({spread})")
            missed |= ratio >= TARGET
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
