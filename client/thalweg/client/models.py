"""Models in this process: predictions, gradient checks and the landscape of a loss. They need NumPy only."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg.client.composition import check_initial, completed, importable, worker_bytes
from thalweg.client.errors import LocalError
from thalweg.client.files import reading
from thalweg.client.inputs import learns_from_images, paths_of, place_of, read_images, read_input, told
from thalweg.client.jobfile import JobFile
from thalweg.client.parts import UNHASHED, numbered, placeholder, total_bytes
from thalweg.client.prediction import Given, Prediction
from thalweg.contract.addresses import sources_of, urls_of
from thalweg.contract.code import entry_points
from thalweg.contract.errors import ThalwegError, Violation, invalid
from thalweg.contract.layout import Slab, ranges, views
from thalweg.contract.manifests import MAX_FILES
from thalweg.contract.resources import memory, size_text
from thalweg.contract.rules import HELD_OUT
from thalweg.learning import data, optimizers, registry
from thalweg.learning import gradcheck as checking
from thalweg.learning.batch import INPUT, Field, in_double
from thalweg.learning.data.errors import listed
from thalweg.learning.data.preparation import Prepared, in_own_units
from thalweg.learning.data.rows import Rows
from thalweg.learning.data.samples import ALL
from thalweg.learning.data.tables import Table
from thalweg.learning.errors import MistakeError, NodeError
from thalweg.learning.gradcheck import Row
from thalweg.learning.objective import Objective, Outputs, layout
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

# What a landscape may cost: multiplications for one point.
_MAX_WORK = 1 << 28
_MAX_SAMPLES = 4096
# Samples are predicted in blocks. A block has at least this number of samples, or more if their activations take fewer bytes.
_MIN_PREDICTED = 4096
_PREDICTED_BYTES = 64 << 20
# A file up to this size is read within a second or two.
_MAX_CHECKED_BYTES = 256 << 20
# How a user lets a job's code run here.
_ALLOW = (
    ": it could do anything that you can do; if you trust who wrote it, use thalweg predict --allow-code, "
    "or job.predict(x, allow_code=True)"
)


# Gives the file that was uploaded under a SHA-256.
Fetch = Callable[[str], Path]


def predict(spec: job_pb2.JobSpec, header: pb.ParametersHeader, slab: Slab, x: Given, code: Fetch | None = None) -> Prediction:
    """What a job's model makes of samples `x`, samples first, or rows of a table, which are prepared as the job's data was.

    For a job that has learned from images, they may be paths of images, or of folders of them; for another one, the path of a
    file, or of a table the path of a folder, or a URL.

    Outputs are those of the last layer: logits, if the loss takes them; for targets that were prepared, in the targets' units.
    `code` is given if the job's code may run in this process, and gives its archive. Raises ThalwegError if the samples are not
    of the kind that the job was trained on, hold numbers that the model's dtype cannot, or lead to outputs that are not finite;
    or if the model is code, which may come from anywhere, and is not allowed.
    """
    with _running(spec, code, _ALLOW):
        if isinstance(x, str | os.PathLike) and not learns_from_images(spec):
            return _predicted(spec, header, slab, read_input([place_of(x)], spec, header).x)
        if (paths := paths_of(x)) is None:
            return _predicted(spec, header, slab, x)
        found = read_images(paths, spec, header, "x")
        return replace(_predicted(spec, header, slab, found.x), files=found.files)


def _predicted(spec: job_pb2.JobSpec, header: pb.ParametersHeader, slab: Slab, x: Given) -> Prediction:
    samples, notices = _prepared(header, x)
    try:
        objective = registry.objective(spec, {INPUT: Field(samples.dtype, samples.shape[1:])}, substitutes=True)
    except MistakeError as error:
        raise _unfit(header, samples, error) from None
    except NodeError as error:
        raise told(error) from None
    slab = _arranged(objective, header.layout, slab, samples)
    at_once = max(_MIN_PREDICTED, _PREDICTED_BYTES // (max(1, objective.activations) * objective.dtype.itemsize))
    blocks = [*ranges(len(samples), at_once)] or [slice(0, 0)]
    try:
        parts = [_outputs(objective, slab, samples, block) for block in blocks]
    except MistakeError as error:
        raise _unfit(header, samples, error) from None
    targets = header.preprocessing.targets
    if parts[0].named is not None:
        return _of_several(parts, targets, notices)
    outputs, classes, probabilities = (
        _joined(arrays) for arrays in zip(*((each.values, each.classes, each.probabilities) for each in parts), strict=True)
    )
    names = tuple(targets[0].classes) if len(targets) == 1 else ()
    return Prediction(in_own_units(targets, outputs), classes, probabilities, names, notices)


def _of_several(parts: Sequence[Outputs], targets: Sequence[job_pb2.PreparedTarget], notices: tuple[str, ...]) -> Prediction:
    """The prediction of a model that returns several outputs, from those for blocks of samples.

    What is not an output for the samples of each block is left out, which a notice says.
    """
    blocks = [part.named or {} for part in parts]
    kept = [name for name in blocks[0] if all(name in block for block in blocks)]
    left_out = dict.fromkeys(name for part in parts for name in (*(part.named or {}), *part.left_out) if name not in kept)
    if left_out:
        notices += (f"the model also returns {listed(list(left_out))}, without the samples on the first axis: left out",)
    if prepared := next((target.name for target in targets if target.prepare not in ("", "none")), ""):
        notices += (f"outputs are in the units of the prepared target {prepared!r}: which of them predicts it is not known",)
    if not kept:
        raise invalid(Violation("x", "no output of the model has the samples on its first axis, whatever their number"))
    named = {name: np.concatenate([block[name] for block in blocks]) for name in kept}
    return Prediction(named[kept[0]], None, notices=notices, named=named)


def _arranged(objective: Objective, layout: job_pb2.Layout, slab: Slab, samples: Rows) -> Slab:
    """The slab of an objective with a job's parameters. Raises ThalwegError if shapes differ.

    A module that needs targets cannot be tried without them; its buffers may then be in another order.
    """
    given = views(layout, slab)
    for name, shape, _ in objective.segments:
        if name not in given:
            raise LocalError(f"the job's parameters have no tensor {name}, which its model has here")
        if given[name].shape != shape:
            wanted = f"{name} has the shape {given[name].shape} but would need {shape}"
            raise invalid(Violation("x", f"{_shape(samples)}, but the job was trained on samples of another shape: {wanted}"))
    if [segment.name for segment in objective.segments] == list(given):
        return slab
    return np.concatenate([given[segment.name].ravel() for segment in objective.segments])


def _joined(arrays: Sequence[NDArray[Any] | None]) -> Any:
    """The arrays of all blocks as one, None if blocks have none."""
    present = [array for array in arrays if array is not None]
    return np.concatenate(present) if present else None


def _outputs(objective: Objective, slab: Slab, samples: Rows, where: slice) -> Outputs:
    """The outputs for some samples. Raises MistakeError, and ThalwegError if they are not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        outputs = objective.predict(slab, {INPUT: samples[where]})
    for name, values in ({"outputs": outputs.values} if outputs.named is None else outputs.named).items():
        wrong = np.argwhere(~np.isfinite(values))
        if len(wrong):
            sample = where.start + wrong[0, 0]
            problem = f"the {name} for sample {sample}, counted from 0, are not finite: its numbers are too large"
            raise invalid(Violation("x", problem))
    return outputs


def _unfit(header: pb.ParametersHeader, samples: Rows, error: MistakeError) -> ThalwegError:
    """The error of samples with which a model cannot be computed."""
    trained = header.preprocessing.dtype
    if samples.dtype.kind == "f" and trained and not trained.startswith("float"):
        problem = f'holds real numbers, but the job was trained on {trained}; convert it, x.astype("{trained}")'
        return invalid(Violation("x", f"{problem} ({error})"))
    return invalid(Violation("x", f"{_shape(samples)} and the type {samples.dtype}; with these samples, {error}"))


def prepare_samples(header: pb.ParametersHeader, x: Given, spec: job_pb2.JobSpec | None = None) -> Slab:
    """Samples `x`, samples first, as a job's model sees them: of its dtype, and prepared as its data was.

    They may be paths of images if the job's specification is given. Raises ThalwegError if they are not of the kind that the job
    was trained on, or hold numbers that the dtype cannot.
    """
    if spec is not None and (paths := paths_of(x)) is not None:
        x = read_images(paths, spec, header, "x").x
    return np.asarray(_prepared(header, x).x[ALL], np.dtype(header.layout.dtype))


def _prepared(header: pb.ParametersHeader, x: Given) -> Prepared:
    """Samples that are prepared when they are taken. Raises ThalwegError as `prepare_samples` does."""
    dtype = np.dtype(header.layout.dtype)
    try:
        found = data.prepare_table(x, header.preprocessing, dtype)
        return found or Prepared(data.prepare(cast("ArrayLike", x), header.preprocessing, dtype))
    except data.DataError as error:
        raise told(error) from None


def read_own_samples(
    spec: job_pb2.JobSpec, fetch: Fetch, *, allow_code: bool = False
) -> tuple[NDArray[Any] | Table, NDArray[Any]]:
    """A job's own validation samples and their targets, as they stand in its data; without any, those that it was trained on.

    Raises ThalwegError if the data cannot be read, or if the job has code that is not allowed.
    """
    try:
        with _running(spec, fetch if allow_code else None, _ALLOW):
            found = data.held_out(spec, fetch)
    except (MistakeError, NodeError) as error:
        raise told(error) from None
    return found.x, found.y


def _shape(samples: Rows) -> str:
    return f"has the shape {samples.shape}"


def check(job: JobFile) -> None:
    """Looks for what a worker would find wrong with a job's model, its data or the parameters that it starts from.

    Files that take long to read, parameters that only a server has, and code are left to the worker. Raises ThalwegError.
    """
    spec = _completed(job.spec)
    if entry_points(spec):
        return
    sizes = [total_bytes(upload.given) for upload in job.uploads()]
    if (
        any(urls_of(part) for part in sources_of(spec.data).values())
        or any(size > _MAX_CHECKED_BYTES for size in sizes)
        or (spec.data.sha256 and not job.data and not job.parts)
    ):
        return
    spec.data.sha256 = UNHASHED
    try:
        with TemporaryDirectory(prefix="thalweg-check-") as folder:
            files = numbered(job.parts or job.data or Path(), Path(folder))
            for number, (name, given) in enumerate(job.held_out.items(), 1):
                held_out, first = getattr(spec.data, name), number * (MAX_FILES + 1)
                held_out.CopyFrom(getattr(job.spec.data, name))
                held_out.sha256 = placeholder(first)
                files |= numbered(given, Path(folder), first)
            dataset = _load(spec, files.__getitem__)
        objective = registry.objective(spec, dataset.schema)
        wrong = optimizers.mistake(spec, objective.segments)
        if wrong:
            raise MistakeError(wrong)
        for samples in filter(len, (dataset.train, dataset.validation, dataset.test)):
            objective.check(samples)
    except (MistakeError, NodeError) as error:
        raise told(error) from None
    need, most = worker_bytes(spec, objective, dataset), memory().total
    if need > most:
        needed = f"a worker for {objective.size:,} parameters needs {size_text(need)} of memory"
        raise invalid(Violation("model.layers", f"{needed}; this machine has {size_text(most)}"))
    if job.initial:
        check_initial(layout(objective), job.initial)


def gradcheck(spec: job_pb2.JobSpec, fetch: Fetch, code: Fetch | None = None) -> list[Row]:
    """A row for each tensor of a job's model: how far backpropagation is from numerical differentiation.

    `fetch` gives the files that the job learns from. `code` is given if the job's code may run in this process, and gives its
    archive. Raises ThalwegError if the job is not right.
    """
    spec = _completed(spec)
    try:
        with _running(spec, code, ""):
            return checking.gradcheck(spec, _load(spec, fetch))
    except (MistakeError, NodeError) as error:
        raise told(error) from None


def _load(spec: job_pb2.JobSpec, fetch: Fetch) -> data.Dataset:
    """The data of a job, whose files `fetch` gives. Raises ThalwegError if a file cannot be read, and DataError."""
    source = str(spec.data.WhichOneof("source"))
    with reading(Path(str(getattr(spec.data, source))), f"data.{source}"):
        return data.load(spec, fetch)


@contextmanager
def _running(spec: job_pb2.JobSpec, code: Fetch | None, hint: str) -> Iterator[None]:
    """Within the context a job's code, if it has any, can run. Raises ThalwegError if it may not, without `code`.

    A job of a server names its code, and any installed function would do as a name.
    """
    if not (uses := entry_points(spec)):
        yield
        return
    if code is None:
        raise LocalError(f"{uses[0].field}: {uses[0].title} is code, which workers run and this process does not{hint}")
    with ExitStack() as stack:
        try:
            stack.enter_context(importable(spec, code))
        except (MistakeError, NodeError) as error:
            raise told(error) from None
        yield


def _completed(spec: job_pb2.JobSpec) -> job_pb2.JobSpec:
    """A copy of a specification with every default, as far as data and model need it. Raises ThalwegError if it is not right."""
    local = job_pb2.JobSpec()
    local.CopyFrom(spec)
    if local.data.WhichOneof("source") != "builtin" and not local.data.sha256 and not urls_of(local.data):
        # The file is at hand; what it would be called on a server does not matter.
        local.data.sha256 = UNHASHED
    if local.code.path and not local.code.sha256:
        local.code.sha256 = UNHASHED
    for name in HELD_OUT:
        if getattr(local.data, name).WhichOneof("source"):
            local.data.ClearField(name)
    # What is checked holds anywhere, and training may start from parameters that only a server has.
    local.model.ClearField("initial")
    return completed(local)


class Landscape:
    """The loss of a job as a function of its parameters: the mean over training samples, without dropout, in float64.

    `fetch` gives the file that was uploaded under a SHA-256. `samples` says over how many samples the mean is taken: not all
    of them if that would take long. Raises ThalwegError if model or data are not right.
    """

    def __init__(self, spec: job_pb2.JobSpec, fetch: Callable[[str], Path]) -> None:
        try:
            with _running(spec, None, ""):
                dataset = data.load(spec, fetch)
                self._objective = registry.objective(spec, dataset.schema, "float64", substitutes=True)
        except (MistakeError, NodeError) as error:
            raise told(error) from None
        room = max(64, min(_MAX_SAMPLES, _MAX_WORK // max(1, self._objective.size)))
        chosen = np.linspace(0, len(dataset.train) - 1, min(room, len(dataset.train))).astype(np.intp)
        self._batch = in_double(dataset.train.take(chosen))
        self.samples = len(chosen)

    def loss(self, parameters: Slab) -> float:
        """The loss at parameters, shape (elements), float64."""
        return self._objective.measure(parameters, self._batch).loss / self.samples

    def along(self, parameters: Slab, position: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The loss at parameters of which the one at `position` takes each of `values`."""
        moved = parameters.astype(np.float64)
        losses = np.empty(len(values))
        for index, value in enumerate(values):
            moved[position] = value
            losses[index] = self.loss(moved)
        return losses
