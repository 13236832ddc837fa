"""Makes the environment that the peers run in: `python -m benchmarks.peers install`."""

import argparse
import subprocess
import sys
import venv

from benchmarks.peers.environment import ENVIRONMENT, EXTRA, REQUIRED, python


def install() -> int:
    """Makes the environment, or renews it. Gives the exit code."""
    venv.create(ENVIRONMENT, with_pip=True)
    pip = [str(python()), "-m", "pip", "install"]
    code = subprocess.run([*pip, *REQUIRED], check=False).returncode
    if code == 0 and subprocess.run([*pip, *EXTRA], check=False).returncode:
        print(f"{' '.join(EXTRA)} cannot be installed; the benchmarks go without", file=sys.stderr)
    return code


def main() -> int:
    """Reads the command line and does what it says. Gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("command", choices=["install"], help=f"with pip, into {ENVIRONMENT.name}: {', '.join(REQUIRED + EXTRA)}")
    parser.parse_args()
    return install()


if __name__ == "__main__":
    sys.exit(main())
