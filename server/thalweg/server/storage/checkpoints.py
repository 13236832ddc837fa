"""Checkpoints of one job: parameters, optimizer state and position, whole or not there.

A checkpoint is a safetensors file whose name holds its version and the SHA-256 of all its bytes, so that a damaged one is known.
It is written aside, synchronised and renamed; only then older ones are removed. Written piece by piece and read where it lies, it
takes no memory besides the arrays that it is made of.

It has a format. Format 1 is that of the releases that wrote no number; the slots of an optimizer's state, which it holds by name,
may be those of an earlier release, and are converted by the optimizer (see `Optimizer.migrated`).
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from thalweg.contract import tensors
from thalweg.contract.layout import Slab
from thalweg.learning.optimizers import OptimizerState
from thalweg.server.deciding.values import Position
from thalweg.server.deciding.workers.machines import Premises
from thalweg.server.settings import KEPT_CHECKPOINTS
from thalweg.server.storage.disk import Disk, publish
from thalweg.v1 import parameter_service_pb2

FORMAT = 2

# The name of a checkpoint's file: its version and its SHA-256.
CHECKPOINT_NAME = re.compile(r"(\d{12})-([0-9a-f]{64})\.safetensors")
_ASIDE = "checkpoint.part"
_PARAMETERS = "parameters"
_STATE = "state."
_TRAJECTORY = "trajectory"
_HEADER = "thalweg.checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A job's state at a version.

    `prepared` is what its workers said about model and data; `trajectory` holds the snapshots so far, each of shape (elements),
    `versions` says of which versions; `samples` and `seconds` tell how much was done, and how long it took; `machines` are the
    kinds of machines that did it, unknown for checkpoints of release 0.1.0; `used` are the seconds that count for the job's time
    limit. The arrays of one that was read lie in its file, and
    cannot be written to.
    """

    position: Position
    prepared: parameter_service_pb2.Prepared
    parameters: Slab
    state: OptimizerState
    versions: tuple[int, ...]
    trajectory: Sequence[Slab]
    samples: int
    seconds: float
    machines: tuple[Premises, ...] = ()
    used: float = 0.0


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message says why."""


class NewerCheckpointError(CheckpointError):
    """A checkpoint is whole, and was written by a newer release, in a format that this one does not know."""


def encode(checkpoint: Checkpoint) -> Iterator[bytes | memoryview]:
    """A checkpoint as the bytes of a safetensors file, in pieces."""
    named: dict[str, tensors.Tensor] = {_PARAMETERS: checkpoint.parameters}
    named |= {_STATE + name: slab for name, slab in checkpoint.state.items()}
    if checkpoint.trajectory:
        named[_TRAJECTORY] = checkpoint.trajectory
    header = {
        "format": FORMAT,
        "release": version("thalweg"),
        "position": checkpoint.position,
        "prepared": base64.b64encode(checkpoint.prepared.SerializeToString()).decode(),
        "versions": checkpoint.versions,
        "samples": checkpoint.samples,
        "seconds": checkpoint.seconds,
        "machines": checkpoint.machines,
        "used": checkpoint.used,
    }
    return tensors.pieces(named, {_HEADER: json.dumps(header)})


def decode(data: memoryview) -> Checkpoint:
    """The checkpoint of a file's bytes, of which its arrays are views.

    Raises CheckpointError if they are none, and NewerCheckpointError if they are one of a newer format.
    """
    try:
        found, metadata = tensors.read(data)
        header = json.loads(metadata[_HEADER])
        _check_format(header)
        at, loss, samples, applied = header["position"]
        return Checkpoint(
            position=Position(at, loss, samples, tuple(applied)),
            prepared=parameter_service_pb2.Prepared.FromString(base64.b64decode(header["prepared"])),
            parameters=found[_PARAMETERS],
            state={name.removeprefix(_STATE): slab for name, slab in found.items() if name.startswith(_STATE)},
            versions=tuple(header["versions"]),
            trajectory=tuple(found.get(_TRAJECTORY, ())),
            samples=header["samples"],
            seconds=header["seconds"],
            machines=tuple(tuple((str(name), str(value)) for name, value in kind) for kind in header.get("machines", ())),
            # Earlier releases counted all the time.
            used=header.get("used", header["seconds"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"is not a checkpoint ({error})") from error


def _check_format(header: Mapping[str, Any]) -> None:
    found = header.get("format", 1)
    if found > FORMAT:
        raise NewerCheckpointError(
            f"release {header.get('release', 'unknown')} wrote it in format {found}; "
            f"this is release {version('thalweg')}, which reads formats up to {FORMAT}"
        )


class Checkpoints:
    """The checkpoints in one job's folder."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.folder = folder
        self._disk = disk

    def write(self, checkpoint: Checkpoint) -> int:
        """Makes a checkpoint durable, and removes those that it makes needless. Gives its size in bytes. Raises OSError."""
        digest, size = hashlib.sha256(), 0

        def hashed() -> Iterator[bytes | memoryview]:
            nonlocal size
            for piece in encode(checkpoint):
                digest.update(piece)
                size += len(piece)
                yield piece

        aside = self.folder / _ASIDE
        self._disk.make_folder(self.folder)
        try:
            self._disk.write(aside, hashed())
            publish(self._disk, aside, self.folder / f"{checkpoint.position.version:012d}-{digest.hexdigest()}.safetensors")
        except OSError:
            # What there was of it takes room that others need.
            self._disk.remove(aside)
            raise
        for name in self._names()[KEPT_CHECKPOINTS:]:
            self._disk.remove(self.folder / name)
        return size

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The last checkpoint that is whole, and what is wrong with those after it.

        Cheap but for the time to read the file once: its arrays are read when they are used. Raises NewerCheckpointError if there
        is one of a newer release: a job must not go on from before it.
        """
        problems: list[str] = []
        for name in self._names():
            try:
                return self._read(name), problems
            except NewerCheckpointError as error:
                raise NewerCheckpointError(f"the checkpoint of step {int(name[:12]):,} cannot be used: {error}") from error
            except (OSError, CheckpointError) as error:
                problems.append(f"the checkpoint of step {int(name[:12]):,} cannot be used: {error}")
        return None, problems

    def _read(self, name: str) -> Checkpoint:
        data = self._disk.read(self.folder / name)
        wanted = name[13:77]
        if hashlib.sha256(data).hexdigest() != wanted:
            raise CheckpointError("it is damaged: its SHA-256 is not the one in its name")
        return decode(data)

    def _names(self) -> list[str]:
        """The files' names, the newest first."""
        return sorted(filter(CHECKPOINT_NAME.fullmatch, self._disk.names(self.folder)), reverse=True)

    def remove(self) -> None:
        """Removes all checkpoints."""
        for name in [*self._names(), _ASIDE]:
            self._disk.remove(self.folder / name)
