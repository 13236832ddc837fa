"""Runs schedules of faults and towns, and prints those that break a guarantee.

One of 40 is a town: a server with many jobs, on storage in memory; one of 10 of these is on a real data folder.
"""

import argparse
import logging
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from multiprocessing import Pool
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.simulation import towns
from tests.simulation.schedules import check, disturbed
from tests.simulation.town import Town
from thalweg.contract.resources import cpus

_WITH_SHARDS, _WITH_MEMORY = "with shards", "with shared memory"
# One of this number of schedules is a town, and one of this number of towns is in a folder.
_TOWNS, _FOLDERS = 40, 10


def _town(seed: int) -> Town:
    """Lives through a town. Those in folders are drawn like the others, by their seeds."""
    if seed % (_TOWNS * _FOLDERS):
        return towns.check(seed)
    with TemporaryDirectory() as folder:
        return towns.check(seed, Path(folder))


def _run(seed: int) -> tuple[int, str, dict[str, int]]:
    if seed % _TOWNS:
        return _run_cluster(seed)
    try:
        counts = _town(seed).counts
    except Exception as error:  # noqa: BLE001 - whatever it is, the next one is run
        return seed, f"town: {error or type(error).__name__}", {}
    return seed, "", {"towns": 1, **{f"town {name}": count for name, count in counts.items()}}


def _run_cluster(seed: int) -> tuple[int, str, dict[str, int]]:
    try:
        cluster = check(seed)
    except Exception as error:  # noqa: BLE001 - whatever it is, the next one is run
        return seed, str(error) or type(error).__name__, {}
    counts = {field.name: value for field, value in cluster.counts.ListFields() if field.name != "greatest_staleness"}
    counts |= {"server starts": cluster.incarnations, "checkpoints": cluster.checkpoints, "damaged": len(cluster.problems)}
    counts |= {
        "workers that failed": cluster.let_go_of,
        "workers refused": cluster.refused,
        "killed at start": cluster.killed_at_start,
        _WITH_SHARDS: cluster.split > 0,
        _WITH_MEMORY: cluster.attached > 0,
        "workers that shared memory": cluster.attached,
        "runs split over shards": cluster.split,
        "runs that lost a shard": cluster.returned,
        "copies that a lost shard interrupted": cluster.interrupted,
    }
    return seed, "", counts


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000, metavar="N", help="how many schedules (1000)")
    parser.add_argument("--first", type=int, default=1, metavar="SEED", help="the first one's seed (1)")
    parser.add_argument("--seed", type=int, metavar="SEED", help="runs one schedule alone, and shows where it fails")
    parser.add_argument("--processes", type=int, default=cpus(), metavar="N", help="how many at a time (one a core)")
    options = parser.parse_args()
    if options.seed is not None and options.seed % _TOWNS == 0:
        sys.stdout.write(f"seed {options.seed}: a town\n")
        try:
            _town(options.seed)
        except Exception:  # noqa: BLE001 - shown
            traceback.print_exc()
            return 1
        sys.stdout.write("no guarantee is broken\n")
        return 0
    if options.seed is not None:
        name, _, cluster = disturbed(options.seed)
        sys.stdout.write(f"seed {options.seed}: {name}, {cluster.wanted} workers, faults {cluster.faults}\n")
        try:
            check(options.seed)
        except Exception:  # noqa: BLE001 - shown
            traceback.print_exc()
            return 1
        sys.stdout.write("no guarantee is broken\n")
        return 0
    return _many(range(options.first, options.first + options.schedules), options.processes)


def _many(seeds: Iterable[int], processes: int) -> int:
    began, failed, total = time.monotonic(), 0, Counter[str]()
    count = 0
    # What servers and shards log of each other's ends is no news here.
    with Pool(processes, logging.disable) as pool:
        for seed, problem, counts in pool.imap_unordered(_run, seeds, chunksize=8):
            count += 1
            total.update(counts)
            if problem:
                failed += 1
                sys.stdout.write(f"seed {seed}: {problem}; again alone: python -m tests.simulation --seed {seed}\n")
    seconds = time.monotonic() - began
    rate = f"{count / seconds * 60:,.0f} a minute"
    sys.stdout.write(f"{count:,} schedules in {seconds:.0f} s, {rate}: {failed} broke a guarantee\n")
    sharded, shared = (f"{total.pop(name, 0) / count:.0%}" for name in (_WITH_SHARDS, _WITH_MEMORY))
    sys.stdout.write(f"{sharded} had parameters at shards, {shared} workers that shared memory\n")
    sys.stdout.write(", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in sorted(total.items())) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
