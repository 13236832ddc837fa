"""The premises of equal bits: what a worker's results depend on besides the job.

A sum of many products is computed in another order by another release of a library, with other instructions of the processor, or
with another number of threads. docs/guarantees.md (1) promises equal bits where all of this is equal.
"""

import importlib
import os
import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from thalweg.learning.objective import Dependent, Objective
from thalweg.v1 import job_pb2, parameter_service_pb2

# Packages that choose their kernels by the processor's model.
_BY_MODEL = frozenset({"torch", "jaxlib"})


def of_objective(objective: Objective) -> list[parameter_service_pb2.Premise]:
    """What the results of an objective depend on in this process, its accelerator and compiler included."""
    own = objective.premises if isinstance(objective, Dependent) else {}
    further = [parameter_service_pb2.Premise(name=name, value=value) for name, value in own.items()]
    return premises(objective.packages) + further


def of_data(data: job_pb2.Data) -> list[parameter_service_pb2.Premise]:
    """What the samples depend on in this process: for images, the package that decodes them."""
    if not data.images:
        return []
    return [parameter_service_pb2.Premise(name="Pillow", value=metadata.version("pillow"))]


def premises(packages: Iterable[str]) -> list[parameter_service_pb2.Premise]:
    """What this process's results depend on, with these packages beside NumPy.

    Must be called with the number of BLAS threads that computations use.
    """
    return [parameter_service_pb2.Premise(name=name, value=value) for name, value in _found(packages)]


def _found(packages: Iterable[str]) -> Iterator[tuple[str, str]]:
    yield "processor", platform.machine()
    yield "instructions", " ".join(_instructions())
    # NumPy uses the C library for some functions, such as exponentials.
    yield "C library", " ".join(platform.libc_ver()).strip() or platform.system()
    yield "NumPy", np.__version__
    if blas := _blas():
        yield "BLAS", " and ".join(sorted({f"{each['internal_api']} {each['version']}" for each in blas}))
        # Only some libraries have several kernels.
        yield "BLAS kernels", " and ".join(sorted({str(each.get("architecture", "unknown")) for each in blas}))
        yield "BLAS threads", " and ".join(sorted({str(each["num_threads"]) for each in blas}))
    used = sorted(packages)
    for package in used:
        yield package, metadata.version(package)
    if "jaxlib" in used:
        yield "XLA's flags", os.environ.get("XLA_FLAGS") or "none"
    if _BY_MODEL.intersection(used):
        yield "processor's model", _model()


def _model() -> str:
    """The processor's maker and model, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _instructions() -> list[str]:
    """The sets of instructions for which NumPy has loops, as far as this processor has them and the environment allows them.

    They are those that `numpy.show_runtime` prints. NumPy has no public name for them.
    """
    umath: Any = importlib.import_module("numpy._core._multiarray_umath")
    return [feature for feature in umath.__cpu_dispatch__ if umath.__cpu_features__[feature]]


def _blas() -> list[dict[str, Any]]:
    """NumPy's BLAS libraries: those of its package, or else all that this process has loaded."""
    loaded = [each for each in threadpool_info() if each["user_api"] == "blas"]
    own = [each for each in loaded if any(part.startswith("numpy") for part in PurePath(each["filepath"]).parts[-3:])]
    return own or loaded
