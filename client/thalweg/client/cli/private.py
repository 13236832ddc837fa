"""Files that nobody else should be able to read."""

import shlex
import stat
from pathlib import Path

from thalweg.client.cli.output import complain


def warn_if_open(path: Path, option: str) -> None:
    """Warns of a file with a secret that other users may read or change."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        complain(f"{option}: {path} is open to other users (mode {mode:o}): chmod 600 {shlex.quote(str(path))}")
