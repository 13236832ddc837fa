"""The examples are jobs: each loads, is right, and takes a step downhill."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.learning.kinds.cases import require
from thalweg.client import load_job
from thalweg.client.composition import completed, importable
from thalweg.client.local_files import local_files
from thalweg.contract import tree
from thalweg.contract.layout import Slab
from thalweg.learning import data
from thalweg.v1 import job_pb2
from thalweg.workers.differentiator import Differentiator

EXAMPLES = Path(__file__).parents[1] / "examples"
JOBS = sorted(EXAMPLES.glob("*/job.toml"))
# Less of what makes a step long.
SMALLER: dict[str, dict[str, Any]] = {"gpt": {"training.batch_size": 8}}
_PACKAGES = {"torch": "torch", "jax": "jax"}


@contextmanager
def trainable(job: Path, settings: Mapping[str, Any], folder: Path) -> Iterator[tuple[job_pb2.JobSpec, Differentiator]]:
    """The complete specification of a job file, and what differentiates its loss, as a worker has it. Skips without packages."""
    loaded = load_job(job, settings)
    kind = loaded.spec.model.WhichOneof("kind")
    if kind in _PACKAGES:
        pytest.importorskip(_PACKAGES[kind])
    if loaded.spec.model.compile:
        require("torch, compiled")
    files = local_files(loaded, folder)
    spec = completed(loaded.spec)
    with importable(spec, files.__getitem__):
        yield spec, Differentiator(spec, data.load(spec, files.__getitem__))


def goes_downhill(spec: job_pb2.JobSpec, differentiator: Differentiator) -> bool:
    """Whether a small step down the gradient of the first minibatch lowers its loss."""
    size = differentiator.objective.size
    start: Slab = np.empty(size, differentiator.objective.dtype)
    differentiator.objective.initialize(start)
    root = tree.root(spec.training.microbatches)
    gradient, before = differentiator.gradient(start, 0, 0, root, slice(0, size))
    assert np.isfinite(gradient).all()
    _, after = differentiator.gradient(start - start.dtype.type(1e-3) * gradient, 1, 0, root, slice(0, size))
    assert before.samples == after.samples > 0
    return after.loss < before.loss


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THALWEG_CODE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.parent.name)
def test_an_example_takes_a_step_downhill(job: Path, tmp_path: Path) -> None:
    with trainable(job, SMALLER.get(job.parent.name, {}), tmp_path) as (spec, differentiator):
        assert goes_downhill(spec, differentiator)


def test_the_page_lists_all_examples() -> None:
    listed = re.findall(r"\]\((\w+)/job\.toml\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == [job.parent.name for job in JOBS]


def files_on(page: str) -> Iterator[tuple[str, str]]:
    """The files that blocks of a page show, by the names in their first lines."""
    for block in re.findall(r"^```python\n(# (\w+\.py)\n.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield block[1], block[0]


def test_the_jobs_of_the_page_on_models_take_a_step_downhill(tmp_path: Path) -> None:
    page = (EXAMPLES.parent / "docs" / "models.md").read_text(encoding="utf-8")
    (tmp_path / "jobs").mkdir()
    for name, text in files_on(page):
        (tmp_path / "jobs" / name).write_text(text)
    kinds = []
    for block in re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        job = tmp_path / "jobs" / "job.toml"
        job.write_text(block)
        with trainable(job, {}, tmp_path) as (spec, differentiator):
            assert goes_downhill(spec, differentiator)
            kinds.append(spec.model.WhichOneof("kind"))
    assert kinds == ["torch", "torch", "jax", "python"]
