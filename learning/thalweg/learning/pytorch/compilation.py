"""Modules that `torch.compile` compiles: with the same bits in every process, whatever a process has compiled before."""

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from thalweg.contract.folders import make_private
from thalweg.learning.errors import MistakeError, NodeError

_FIELD = "model.compile"
_WITHOUT = "or set model.compile = false"
# Where PyTorch keeps what it compiles.
_FOLDER = "TORCHINDUCTOR_CACHE_DIR"
_DIGITS = 12
# Variables of the environment that change what is computed begin with these. The others only change where, and how fast, it is
# compiled.
_VARIABLES = ("TORCHINDUCTOR_", "TORCHDYNAMO_", "TORCH_COMPILE_")
_OTHERS = {_FOLDER, "TORCHINDUCTOR_COMPILE_THREADS"}
# One graph for each size of a microbatch; beside them those of other jobs in this process. A module with more depends on
# something that changes from call to call.
_MAX_GRAPHS = 128


class CompiledModule:
    """A module's training steps, compiled for the processor: one whole graph for each shape of its inputs.

    Random numbers are those that the module draws from PyTorch's generator without compilation. `threads` is the number of
    threads that compute. Raises NodeError if this machine cannot compile.
    """

    def __init__(self, module: nn.Module, threads: int) -> None:
        from torch._inductor import config  # noqa: PLC0415 - takes long, and only such jobs need it

        if not hasattr(config, "deterministic"):
            problem = f"PyTorch {torch.__version__} is too old to compile with equal bits; install 2.13"
            raise NodeError(f"{_FIELD}: {problem}, {_WITHOUT}")
        compiler = _compiler()
        _use_folder(compiler)
        self.premises: Mapping[str, str] = {
            "C++ compiler": compiler,
            "settings of torch.compile": _settings(),
        }
        # Of several graphs, or of one for several shapes, what is compiled would depend on what was called first.
        self.module: nn.Module = torch.compile(
            module,
            fullgraph=True,
            dynamic=False,
            options={
                # What is fastest is not measured.
                "deterministic": True,
                "max_autotune": False,
                "fallback_random": True,
                "cpp.threads": threads,
                # No processes beside this one, which somebody would have to end.
                "compile_threads": 1,
            },
        )

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """What the module returns. Raises MistakeError if it cannot be compiled, NodeError if this machine cannot compile it."""
        with compiling():
            return self.module(*inputs, **named)


@contextmanager
def compiling() -> Iterator[None]:
    """Around calls that may compile. Raises MistakeError or NodeError in place of PyTorch's errors."""
    from torch._dynamo import config  # noqa: PLC0415 - takes long, and only such jobs need it
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # noqa: PLC0415
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler  # noqa: PLC0415

    try:
        with config.patch(recompile_limit=_MAX_GRAPHS, accumulated_recompile_limit=_MAX_GRAPHS, suppress_errors=False):
            yield
    except FailOnRecompileLimitHit as error:
        problem = f"the module depends on values that change from call to call: it was compiled {_MAX_GRAPHS} times"
        raise MistakeError(f"{_FIELD}: {problem}; change it, {_WITHOUT}") from error
    except (TorchDynamoException, CppCompileError, InvalidCxxCompiler) as error:
        if lack := _lack(error):
            raise NodeError(f"{_FIELD}: this machine cannot compile: {lack}") from error
        raise MistakeError(f"{_FIELD}: the module cannot be compiled: {_told(error)}; change it, {_WITHOUT}") from error


def _compiler() -> str:
    """The name and release of the C++ compiler that PyTorch uses. Raises NodeError if there is none."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # noqa: PLC0415 - takes long, and only such jobs need it
    from torch._inductor.exc import InvalidCxxCompiler  # noqa: PLC0415

    try:
        answer = subprocess.check_output([get_cpp_compiler(), "--version"], text=True)  # noqa: S603 - the one PyTorch runs
    except (InvalidCxxCompiler, OSError, subprocess.SubprocessError) as error:
        raise NodeError(f"{_FIELD}: this machine has no C++ compiler; install g++, {_WITHOUT}") from error
    return answer.partition("\n")[0].strip()


def _settings() -> str:
    """What the environment says about compilation."""
    names = sorted(name for name in os.environ if name.startswith(_VARIABLES) and name not in _OTHERS)
    return " ".join(f"{name}={os.environ[name]}" for name in names) or "none"


def _told(error: Exception) -> str:
    """The first line of what PyTorch says about a module, and the last of the lines of code that it names."""
    text = str(error).strip()
    places = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', text)
    where = " (at {}:{} in {})".format(*places[-1]) if places else ""
    return f"{text.partition(chr(10))[0]}{where}"


def _lack(error: BaseException | None) -> str:
    """What this machine lacks, if that is why something could not be compiled."""
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler  # noqa: PLC0415 - as above

    while error is not None:
        match error:
            case CppCompileError():
                problem = next((line for line in error.output.splitlines() if "error" in line), "the C++ compiler failed")
                return f"{problem.strip()}; install g++ and Python's headers (python3-dev), {_WITHOUT}"
            case InvalidCxxCompiler() | MemoryError() | OSError() | ImportError():
                return f"{type(error).__name__}: {error}; {_WITHOUT.removeprefix('or ')}"
        error = getattr(error, "inner_exception", None) or error.__cause__
    return ""


@cache
def _use_folder(compiler: str) -> TemporaryDirectory[str] | None:
    """Has PyTorch keep what it compiles in a folder of this user's and this compiler's alone.

    What another compiler has made would have other bits, and what another user can write would run in this process. If there
    can be no such folder, it is a temporary one, which is there as long as the answer, which is kept.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # noqa: PLC0415 - as above

    outer = Path(os.environ.get(_FOLDER) or default_cache_dir()).absolute()
    temporary = None
    folder = outer / f"thalweg-{hashlib.sha256(compiler.encode()).hexdigest()[:_DIGITS]}"
    try:
        make_private(outer)
        make_private(folder)
    except OSError:
        temporary = TemporaryDirectory(prefix="thalweg-compiled-", ignore_cleanup_errors=True)
        folder = Path(temporary.name)
    os.environ[_FOLDER] = str(folder)
    return temporary
