"""What is measured: each system is a program that prints one line of JSON, and one line here."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

from benchmarks.peers import environment
from benchmarks.program import Rate, Unavailable
from benchmarks.workloads import DENSE, GROUPS, Workload

ROOT = environment.ROOT
# A program that takes so much longer than its window has got stuck.
_PATIENCE_SECONDS = 240.0
# Libraries choose the kernels that suit the processor, and no variable overrules them; nor is there a Ray to find but one's own.
_LEFT_OUT = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "RAY_ADDRESS")


class ProgramError(Exception):
    """A system's program failed; the message is the end of what it said."""


@dataclass(frozen=True)
class System:
    """A system to measure. `needs` is the package that a peer needs; `only` names the workloads, where it is not all."""

    name: str
    title: str
    program: tuple[str, ...]
    needs: str | None = None
    only: tuple[str, ...] = ()

    def measures(self, workload: Workload) -> bool:
        """Whether it says something about a workload."""
        return not self.only or workload.name in self.only

    def rate(self, workload: Workload, seconds: float) -> Rate:
        """Steps in a number of seconds of the steady state. Raises Unavailable if it is not there, ProgramError if it fails."""
        if self.needs:
            _require(self.needs)
        python = str(environment.python()) if self.needs else sys.executable
        command = [python, "-m", *self.program, workload.name, "--seconds", str(seconds)]
        answer = json.loads(output(command, variables(self.needs is None), seconds + _PATIENCE_SECONDS).splitlines()[-1])
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        return Rate(**answer)


def _require(package: str) -> None:
    """Raises Unavailable if the peers' environment lacks a package."""
    if not any(environment.ENVIRONMENT.glob(f"lib/python*/site-packages/{package}/__init__.py")):
        raise Unavailable("not installed (python -m benchmarks.peers install)")


def variables(own: bool) -> dict[str, str]:
    """The variables that a program runs with; Python's own path is for Thalweg only."""
    left_out = _LEFT_OUT if own else (*_LEFT_OUT, "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if name not in left_out}


def output(command: list[str], environ: dict[str, str], patience: float) -> str:
    """What a program prints. It ends with all that it started. Raises ProgramError if it fails, or takes too long."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as program:
        try:
            output, errors = program.communicate(timeout=patience)
        except subprocess.TimeoutExpired as error:
            raise ProgramError(f"no answer within {patience:.0f} s") from error
        finally:
            if program.poll() is None:
                os.killpg(program.pid, signal.SIGKILL)
    if program.returncode or not output.strip():
        raise ProgramError("\n".join(errors.strip().splitlines()[-40:]) or f"exit code {program.returncode}")
    return output


_THALWEG, _LIMIT, _DDP = "benchmarks.systems.thalweg", "benchmarks.systems.limit", "benchmarks.peers.ddp"
_ALL = (
    System("thalweg", "Thalweg", (_THALWEG, "--exchange", "memory")),
    System("thalweg_grpc", "Thalweg, payload over gRPC", (_THALWEG, "--exchange", "grpc")),
    System(
        "thalweg_grpc_bfloat16",
        "Thalweg, payload over gRPC, bfloat16",
        (_THALWEG, "--exchange", "grpc", "--codec", "bfloat16"),
        only=("small", "wide", "wide_adam"),
    ),
    System("limit", "limit: gradients alone", (_LIMIT, "--update", "no")),
    System("limit_with_update", "limit: gradients and update", (_LIMIT, "--update", "yes")),
    System("limit_of_torch", "limit: gradients alone, by PyTorch alone", (f"{_LIMIT}_of_torch",), only=tuple(GROUPS["torch"])),
    System("limit_over_grpc", "limit: gradients, their bytes over gRPC", (f"{_LIMIT}_over_grpc",), only=("small", "tiny")),
    System("ddp", "PyTorch DDP, Gloo, tuned", (_DDP, "--tuned", "yes"), needs="torch"),
    System("ddp_default", "PyTorch DDP, Gloo, defaults", (_DDP, "--tuned", "no"), needs="torch"),
    System("ray", "Ray, parameter server of actors", ("benchmarks.peers.ray_ps",), needs="ray", only=tuple(DENSE)),
    System(
        "tensorflow",
        "TensorFlow ParameterServerStrategy, asynchronous",
        ("benchmarks.peers.tensorflow_ps",),
        needs="tensorflow",
        only=tuple(DENSE),
    ),
)
SYSTEMS = {system.name: system for system in _ALL}
