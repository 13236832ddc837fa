"""Prepared samples in files of a node, sample after sample: made once from sources that take long to read, then read fast."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from thalweg.contract.resources import size_text
from thalweg.contract.rules import HELD_OUT
from thalweg.learning.data.access import Access
from thalweg.learning.data.rows import FileRows
from thalweg.learning.data.samples import Arrays, Samples, blocks, sample_bytes
from thalweg.v1 import job_pb2

# Of what is fitted, and of the files: another one, and they are made again.
_FORMAT = 1


def content_of(spec: job_pb2.JobSpec, *facts: object) -> str:
    """A digest of all that the samples of a job depend on, with some facts of its data; empty if it is not known what that is."""
    own = [held_out for name in HELD_OUT if (held_out := getattr(spec.data, name)).WhichOneof("source")]
    if not all(named.sha256 for named in (spec.data, *own)):
        return ""
    depends = job_pb2.JobSpec(data=spec.data, seed=spec.seed)
    depends.model.dtype, depends.model.loss = spec.model.dtype, spec.model.loss
    kind = spec.model.WhichOneof("kind")
    digest = hashlib.sha256(depends.SerializeToString(deterministic=True))
    digest.update(" ".join(map(str, (_FORMAT, kind, np.__version__, *facts))).encode())
    return digest.hexdigest()


def stored(content: str, parts: Sequence[Arrays], access: Access) -> list[Arrays]:
    """The same samples, read from files that are made once on each node; as they are, where a node has no room for these.

    `content` identifies the samples; if it is empty, nothing is made. Raises DataError if they cannot be read.
    """
    if not content:
        return list(parts)
    needed = sum(len(samples) * sample_bytes(samples.schema) for samples in parts)

    def fill(folder: Path) -> None:
        count, done = sum(map(len, parts)), 0
        what = f"preparing {count:,} samples ({size_text(needed)}), once for this node"
        with access.doing(what, lambda: f"{what}: {done:,} done"):
            folder.mkdir()
            for number, samples in enumerate(parts):
                for block in _written(folder, number, samples):
                    done += block

    folder = access.faster(f"samples-{_FORMAT}-{content}", needed, fill)
    return [_opened(folder, number, samples) for number, samples in enumerate(parts)] if folder else list(parts)


def _written(folder: Path, number: int, samples: Samples) -> Iterator[int]:
    """Writes samples block by block, and says how many each time."""
    with ExitStack() as stack:
        files = {}
        for name, field in samples.schema.items():
            file = files[name] = stack.enter_context(_path(folder, number, name).open("wb"))
            if size := len(samples) * sample_bytes({name: field}):
                # A disk that is too small is found out before anything is prepared.
                os.posix_fallocate(file.fileno(), 0, size)
        for block in blocks(samples):
            for name, values in samples.take(block).items():
                files[name].write(np.ascontiguousarray(values).data)
            yield block.stop - block.start


def _opened(folder: Path, number: int, samples: Samples) -> Arrays:
    found = {}
    for name, field in samples.schema.items():
        with _path(folder, number, name).open("rb") as file:
            subject = "data: what this node made of it"
            found[name] = FileRows(file.fileno(), 0, (len(samples), *field.shape), field.dtype, subject)
    return Arrays(found)


def _path(folder: Path, number: int, name: str) -> Path:
    return folder / f"{number}-{name}"
