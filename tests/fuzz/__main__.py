"""Sends garbage to every method of a server and a shard of its own, and ends with exit code 1 if it did harm."""

import argparse
import logging
import random
import sys
import tempfile
import time
from pathlib import Path

from thalweg.contract.process import prepare


def main() -> int:
    """Runs the command."""
    prepare()
    from tests.fuzz import campaign  # imports gRPC

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000, metavar="N", help="how many messages at least (100000)")
    parser.add_argument("--seed", type=int, metavar="SEED", help="draws them from a seed (by default another one each time)")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    logging.disable()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        try:
            report = campaign.run(Path(home), options.messages, seed)
        except campaign.HarmError as harm:
            sys.stdout.write(f"seed {seed}: {harm}\n")
            return 1
    seconds = time.monotonic() - began
    sys.stdout.write(
        f"seed {seed}: {report.messages:,} messages in {seconds:.0f} s; {report.jobs} jobs meanwhile, all with one digest\n"
    )
    sys.stdout.write(f"memory at most: server {report.server_mib} MiB, shard {report.shard_mib} MiB\n")
    sys.stdout.write(", ".join(f"{code} {count:,}" for code, count in report.statuses.most_common()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
