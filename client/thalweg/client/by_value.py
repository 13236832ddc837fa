"""Models by value: a PyTorch module of this process, or a function that makes one, as the code of a job.

The code is a folder with one small module and pickles, which only workers read. `cloudpickle` writes classes and functions into
them that workers could not import: those of `__main__`, of notebooks, and of files that are not installed.
"""

import hashlib
import inspect
import pickle
import re
import sys
import sysconfig
import threading
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import CodeType, ModuleType
from typing import IO, Any, TypeGuard

from thalweg.client.errors import LocalError
from thalweg.client.extras import needs
from thalweg.client.jobfile import JobFile
from thalweg.contract.code import BY_VALUE, BY_VALUE_FILE, MAX_ARCHIVE_BYTES
from thalweg.contract.errors import Violation, invalid
from thalweg.contract.resources import size_text
from thalweg.v1 import job_pb2

# Of the SHA-256 of its pickles, in the name of the module that workers import: a process may have models of several jobs.
_DIGITS = 12
_MODEL, _LOSS = "model.pickle", "loss.pickle"
_TEXT = '''"""A model by value: written by thalweg.client, read by workers."""

import functools
import pathlib
import pickle
import sys

VERSION = {version!r}


def _read(name):
    if sys.version_info[:2] != VERSION:
        theirs, ours = (".".join(map(str, version)) for version in (VERSION, sys.version_info[:2]))
        raise RuntimeError(
            f"the {{name}} was pickled by Python {{theirs}}, but workers have Python {{ours}}; "
            "use the same one, or give the model as a file, by code.path"
        )
    with (pathlib.Path(__file__).parent / f"{{name}}.pickle").open("rb") as file:
        return pickle.load(file)


def model():
    return _read("model")


def made():
    return _read("model")()


_loss = functools.cache(lambda: _read("loss"))


def loss(outputs, targets):
    return _loss()(outputs, targets)
'''
# Where installed packages are, which workers have or get by code.requirements.
_SITES = {"site-packages", "dist-packages"}
# How cloudpickle names the file of all code, and IPython that of a cell.
_UNKNOWN_FILE = "<dynamic-code>"
_CELL = re.compile(r"^<ipython-input-|[/\\]ipykernel_\d+[/\\]")
# Bytes of the smallest numbers that parameters may be.
_MIN_REAL_BYTES = 4
# How deep what cannot be pickled is looked for.
_MAX_DEPTH = 4
# Guards what cloudpickle knows of modules.
_lock = threading.Lock()


def with_model(job: JobFile, model: object, loss: object, folder: Path) -> JobFile:
    """The job, with `model` in place of its model, and with its code in `folder`, which is empty.

    `model` is a torch.nn.Module, from whose parameters and buffers training starts, or a callable without arguments that makes
    one. `loss` is None for the job's own, a name as in a job file, or a function of (outputs, targets). Raises ThalwegError if
    the job has code of its own, if something cannot be pickled or is too large, or if a tensor is not in the memory of the CPU.
    """
    with needs("torch", "models by value"):
        import cloudpickle  # noqa: F401, PLC0415 - an extra
        import torch  # noqa: PLC0415 - an extra
    is_module = isinstance(model, torch.nn.Module)
    if is_module:
        _check_module(model)
    elif not callable(model):
        problem = f"must be a torch.nn.Module, or a function that makes one, not {type(model).__name__}"
        raise invalid(Violation("model", problem))
    else:
        _check_maker(model)
    spec = job_pb2.JobSpec()
    spec.CopyFrom(job.spec)
    _check_no_other(spec, job, is_module=is_module)
    if isinstance(model, torch.nn.Module) and not spec.model.HasField("dtype"):
        kinds = {parameter.dtype for parameter in model.parameters()}
        if kinds == {torch.float64}:
            spec.model.dtype = "float64"
    if loss is None and spec.model.loss.startswith(BY_VALUE):
        raise invalid(Violation("loss", "the job's own was a function by value, which comes with its model; give it again"))
    if inspect.isclass(loss):
        raise invalid(
            Violation("loss", f"is the class {loss.__name__}; give {loss.__name__}(), or a function of (outputs, targets)")
        )
    digest = hashlib.sha256()
    with _by_value():
        _write(model, folder / _MODEL, "model", digest)
        if callable(loss):
            _write(loss, folder / _LOSS, "loss", digest)
        elif loss is not None and not isinstance(loss, str):
            problem = f"must be a name, or a function of (outputs, targets), not {type(loss).__name__}"
            raise invalid(Violation("loss", problem))
    module = f"{BY_VALUE}{digest.hexdigest()[:_DIGITS]}"
    (folder / f"{module}.py").write_text(_TEXT.format(version=sys.version_info[:2]), encoding="utf-8")
    del spec.model.layers[:]
    spec.model.torch.CopyFrom(job_pb2.EntryPoint(entrypoint=f"{module}:{'model' if is_module else 'made'}"))
    if loss is not None:
        spec.model.loss = loss if isinstance(loss, str) else f"{module}:loss"
    spec.code.path = module
    spec.code.ClearField("sha256")
    return replace(job, spec=spec, code=folder)


def _check_no_other(spec: job_pb2.JobSpec, job: JobFile, *, is_module: bool) -> None:
    """Raises ThalwegError if a job has something that a model by value would contradict."""
    kind = spec.model.WhichOneof("kind")
    entry = getattr(spec.model, kind).entrypoint if kind else ""
    by_value = entry.startswith(BY_VALUE)
    if kind and not by_value:
        raise invalid(
            Violation(f"model.{kind}", f"the job has the model {entry}, and `model` is another one; leave one of them out")
        )
    if spec.code.WhichOneof("source") and not by_value:
        problem = "not allowed with model=; put the code in an installed package, or give the model as model.torch with code.path"
        raise invalid(Violation("code.path", problem))
    if is_module and (job.initial or spec.model.initial.WhichOneof("source")):
        problem = "training starts from the module's own parameters; load others into it, or give a function that makes it"
        raise invalid(Violation("model.initial", problem))


def _check_maker(make: Callable[..., object]) -> None:
    """Raises ThalwegError if a callable that makes a module needs arguments."""
    try:
        # A decorator may give what the function within it needs.
        signature = inspect.signature(make, follow_wrapped=False)
    except (TypeError, ValueError):
        return
    try:
        signature.bind()
    except TypeError as error:
        name = getattr(make, "__name__", type(make).__name__)
        problem = f"{name}{signature} is called without arguments: {error}; give lambda: {name}(...)"
        raise invalid(Violation("model", problem)) from None


def _check_module(model: Any) -> None:
    """Raises ThalwegError if a module cannot be trained as it is."""
    if "_parameters" not in vars(model):
        raise invalid(Violation("model", f"{type(model).__name__}.__init__ does not call super().__init__()"))
    from torch.nn.parameter import is_lazy  # noqa: PLC0415 - an extra

    from thalweg.learning.errors import MistakeError  # noqa: PLC0415 - programs without models need no mathematics
    from thalweg.learning.pytorch.sharing import check_apart, overlaps, tensors_of_attributes  # noqa: PLC0415 - an extra

    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            problem = f"its tensor {name} has no shape yet, as in a lazy module; call the module with a batch first"
            raise invalid(Violation("model", problem))
        # Pickles of tensors are without them.
        if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
            problem = f"its tensor {name} has a hook, which workers would not have"
            raise invalid(Violation("model", f"{problem}; give a function that makes the module with its hooks"))
        if tensor.device.type != "cpu":
            why = "which holds no values" if tensor.is_meta else "but workers compute on CPUs: give model.cpu()"
            problem = f"its tensor {name} is on the device {tensor.device}, {why}"
            raise invalid(Violation("model", problem))
    try:
        # Pickles are without what tensors share.
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        check_apart(overlaps(model), trained, tensors_of_attributes(model, hooked=False))
    except MistakeError as error:
        raise invalid(Violation("model", str(error).partition(": ")[2])) from None
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.element_size() < _MIN_REAL_BYTES:
            problem = (
                f"its parameter {name} is {str(parameter.dtype).removeprefix('torch.')}, but parameters are float32 or float64"
            )
            hint = 'give model.float(), and set model.precision = "bfloat16" to compute in bfloat16'
            raise invalid(Violation("model", f"{problem}; {hint}"))
    if not model.training:
        problem = (
            "the module is in evaluation mode, in which dropout and batch norm do not train; call model.train() first, "
            "and then eval() of those of its modules that are to stay in it"
        )
        raise invalid(Violation("model", problem))


@contextmanager
def _by_value() -> Iterator[None]:
    """Within the context, cloudpickle writes what modules define that are not installed, and so not on workers, by value."""
    import cloudpickle  # noqa: PLC0415 - an extra

    with _lock:
        known = cloudpickle.list_registry_pickle_by_value()
        ours: list[ModuleType] = []
        for name, module in list(sys.modules.items()):
            # Another thread may remove a module meanwhile, as workers do with those of a job's code.
            with suppress(ValueError):
                if name not in known and _is_own(name, module):
                    cloudpickle.register_pickle_by_value(module)
                    ours.append(module)
        try:
            yield
        finally:
            for module in ours:
                cloudpickle.unregister_pickle_by_value(module)


def _is_own(name: str, module: object) -> TypeGuard[ModuleType]:
    """Whether a module is a file of the user's that is not installed."""
    if not isinstance(module, ModuleType) or module.__name__ != name or name.partition(".")[0] in ("__main__", "thalweg"):
        return False
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or _SITES & set(Path(file).parts):
        return False
    return not any(Path(file).is_relative_to(sysconfig.get_path(path)) for path in ("stdlib", "platstdlib"))


def _write(value: object, path: Path, field: str, digest: "hashlib._Hash") -> None:
    """Pickles something into a file, whose bytes go into a digest. Raises ThalwegError, which names what cannot be pickled."""
    try:
        with path.open("wb") as file:
            _pickler(file).dump(value)
    except OSError as error:
        raise LocalError(f"cannot write {path}: {error.strerror}") from error
    except Exception as error:
        where, why = _culprit(value, "", error, _MAX_DEPTH)
        what = f"its {where} cannot be pickled" if where else "cannot be pickled"
        hint = (
            "make it when the module is called, or give a function that makes the module" if field == "model" else "leave it out"
        )
        raise invalid(Violation(field, f"{what} ({type(why).__name__}: {why}); {hint}")) from error
    size = path.stat().st_size
    if size > MAX_ARCHIVE_BYTES:
        problem = f"has {size_text(size)} as a pickle; at most {size_text(MAX_ARCHIVE_BYTES)} are allowed"
        raise invalid(Violation(field, f"{problem}: give a function that makes it, and its parameters by model.initial.file"))
    with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())


def _pickler(file: IO[bytes]) -> pickle.Pickler:
    """A pickler of cloudpickle's that keeps the names of the files that code is from, which errors on workers show."""
    import cloudpickle  # noqa: PLC0415 - an extra

    reduce = cloudpickle.Pickler.dispatch_table[CodeType]

    def reduced(code: CodeType) -> tuple[Any, ...]:
        make, arguments, *more = reduce(code)
        named = BY_VALUE_FILE + _file_of(code)
        return make, tuple(named if each in (_UNKNOWN_FILE, code.co_filename) else each for each in arguments), *more

    table = ChainMap({CodeType: reduced}, cloudpickle.Pickler.dispatch_table)
    # Picklers look for their table when they are made.
    kind: Callable[[IO[bytes]], pickle.Pickler] = type("Pickler", (cloudpickle.Pickler,), {"dispatch_table": table})
    return kind(file)


def _file_of(code: CodeType) -> str:
    """The file that code is from, as its author knows it."""
    file = code.co_filename.removeprefix(BY_VALUE_FILE)
    if _CELL.search(file):
        return "a notebook's cell"
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


def _culprit(value: object, name: str, error: Exception, depth: int) -> tuple[str, Exception]:
    """The name of the innermost part of something that cannot be pickled, and why."""
    for part, inner in _parts(value) if depth else ():
        if problem := _problem(inner):
            return _culprit(inner, f"{name}.{part}".lstrip("."), problem, depth - 1)
    return name, error


def _problem(value: object) -> Exception | None:
    import cloudpickle  # noqa: PLC0415 - an extra

    try:
        cloudpickle.dumps(value)
    except Exception as error:  # noqa: BLE001 - pickling runs methods of the user's
        return error
    return None


def _parts(value: object) -> Iterator[tuple[str, object]]:
    """What something consists of, by names that its author knows."""
    if inspect.isfunction(value):
        used = inspect.getclosurevars(value)
        # In a method that calls super(), its class.
        yield from ((name, inner) for name, inner in {**used.nonlocals, **used.globals}.items() if name != "__class__")
    elif inspect.isclass(value):
        yield from ((name, member) for name, member in vars(value).items() if inspect.isfunction(member))
    elif isinstance(value, Mapping):
        yield from ((str(name), inner) for name, inner in value.items())
    else:
        held: dict[str, Any] = getattr(value, "__dict__", {})
        for name, inner in held.items():
            if name in ("_parameters", "_buffers", "_modules"):
                yield from inner.items()
            else:
                yield name, inner
        yield type(value).__qualname__.rpartition(".")[2], type(value)
