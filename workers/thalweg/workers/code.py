"""The code of a job's author, in a worker's process: fetched, unpacked, and put where modules are imported from.

Nothing of it runs here; it runs when an entry point is loaded (`learning/entry_points.py`).
"""

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

from thalweg.contract.code import entry_points
from thalweg.learning import registry
from thalweg.learning.errors import NodeError
from thalweg.v1 import job_pb2
from thalweg.workers.archive import Archive
from thalweg.workers.code_cache import kept

# Guards what all threads of a process import from.
_lock = threading.Lock()


@contextmanager
def ready(spec: job_pb2.JobSpec, fetch: Callable[[str], Path], *, allowed: bool) -> Iterator[None]:
    """Within the context, the library of the job's model is set as its kind needs it, and then the job's code is `importable`.

    The library comes first: it must not import a module of the job's that has the name of one of its own.
    """
    _check_allowed(spec, allowed=allowed)
    with registry.kind_of(spec).settings(spec.training.threads_per_worker), importable(spec, fetch, allowed=allowed):
        yield


@contextmanager
def importable(spec: job_pb2.JobSpec, fetch: Callable[[str], Path], *, allowed: bool) -> Iterator[None]:
    """Within the context, modules of the job's code can be imported, before all others of the same names.

    `fetch` gives the file that was uploaded under a SHA-256. Raises NodeError if the job has code and `allowed` is not true, as
    the fleet's operator says; MistakeError if the archive is not right; OSError if this node has no room for it.
    """
    _check_allowed(spec, allowed=allowed)
    with ExitStack() as stack:
        if entry_points(spec) and spec.code.sha256:
            with fetch(spec.code.sha256).open("rb") as file:
                archive = Archive(file, spec.code.sha256, "code.path")
                folder = stack.enter_context(kept(spec.code.sha256, archive.unpack, archive.is_in))
            stack.enter_context(_in_front(str(folder)))
        yield


def _check_allowed(spec: job_pb2.JobSpec, *, allowed: bool) -> None:
    if (uses := entry_points(spec)) and not allowed:
        problem = "which workers of this fleet do not run; its operator can allow it: thalweg fleet --allow-code"
        raise NodeError(f"{uses[0].field}: {uses[0].title} is code, {problem}")


@contextmanager
def _in_front(folder: str) -> Iterator[None]:
    # The folder is for reading only, which does not stop root.
    sys.dont_write_bytecode = True
    with _lock:
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
    try:
        yield
    finally:
        with _lock:
            sys.path.remove(folder)
            if folder not in sys.path:
                # Another job may have modules of the same names. Another thread may import some meanwhile.
                for name in [name for name, module in list(sys.modules.items()) if _lies_in(module, Path(folder))]:
                    del sys.modules[name]


def _lies_in(module: ModuleType, folder: Path) -> bool:
    try:
        places = [module.__file__] if getattr(module, "__file__", None) else list(module.__path__)
    except Exception:  # noqa: BLE001 - modules may be any objects
        return False
    return any(isinstance(place, str) and Path(place).is_relative_to(folder) for place in places)
