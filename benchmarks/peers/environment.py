"""Where the peers are installed, and what that is."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-peers"
# On Linux, pip may take a build of PyTorch for GPUs; it computes the same on CPUs, but is much larger.
REQUIRED = ["torch==2.13.0", "ray", "numpy"]
# Measured where it can be had.
EXTRA = ["tensorflow-cpu"]


def python() -> Path:
    """The environment's Python."""
    return ENVIRONMENT / "bin" / "python"
