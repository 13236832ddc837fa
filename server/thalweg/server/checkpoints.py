"""Checkpoints of one job: parameters, optimizer state and position, whole or not there.

A checkpoint is a safetensors file whose name holds its version and the SHA-256 of all its bytes, so that a damaged one is known.
It is written aside, synchronised and renamed; only then older ones are removed.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from thalweg.contract.layout import Slab
from thalweg.server.disk import Disk, publish
from thalweg.server.messages import Position
from thalweg.server.optimizers import State
from thalweg.server.settings import KEPT_CHECKPOINTS
from thalweg.v1 import parameter_service_pb2

_NAME = re.compile(r"(\d{12})-([0-9a-f]{64})\.safetensors")
_ASIDE = "checkpoint.part"
_STATE = "state."
_TRAJECTORY = "trajectory"
_HEADER = "thalweg.checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A job's state at a version.

    `prepared` is what its workers said about model and data; `versions` and `trajectory`, shape (versions, elements), are the
    snapshots so far; `samples` and `seconds` tell how much was done, and how long it took.
    """

    position: Position
    prepared: parameter_service_pb2.Prepared
    parameters: Slab
    state: State
    versions: tuple[int, ...]
    trajectory: Slab | None
    samples: int
    seconds: float


class CheckpointError(Exception):
    """A checkpoint is damaged; the message says how."""


def encode(checkpoint: Checkpoint) -> bytes:
    """A checkpoint as the bytes of a safetensors file."""
    tensors = {"parameters": checkpoint.parameters} | {_STATE + name: slab for name, slab in checkpoint.state.items()}
    if checkpoint.trajectory is not None:
        tensors[_TRAJECTORY] = checkpoint.trajectory
    header = {
        "position": checkpoint.position,
        "prepared": base64.b64encode(checkpoint.prepared.SerializeToString()).decode(),
        "versions": checkpoint.versions,
        "samples": checkpoint.samples,
        "seconds": checkpoint.seconds,
    }
    return save(tensors, {_HEADER: json.dumps(header)})


def decode(data: bytes) -> Checkpoint:
    """The checkpoint of a file's bytes. Raises CheckpointError if they are none."""
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_HEADER])
        tensors = load(data)
        version, loss, samples, applied = header["position"]
        return Checkpoint(
            position=Position(version, loss, samples, tuple(applied)),
            prepared=parameter_service_pb2.Prepared.FromString(base64.b64decode(header["prepared"])),
            parameters=tensors["parameters"],
            state={name.removeprefix(_STATE): slab for name, slab in tensors.items() if name.startswith(_STATE)},
            versions=tuple(header["versions"]),
            trajectory=tensors.get(_TRAJECTORY),
            samples=header["samples"],
            seconds=header["seconds"],
        )
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"is no checkpoint ({error})") from error


class Checkpoints:
    """The checkpoints in one job's folder."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.folder = folder
        self._disk = disk

    def write(self, checkpoint: Checkpoint) -> int:
        """Makes a checkpoint durable, and removes those that it makes needless. Gives its size in bytes. Raises OSError."""
        data = encode(checkpoint)
        path = self.folder / f"{checkpoint.position.version:012d}-{hashlib.sha256(data).hexdigest()}.safetensors"
        aside = self.folder / _ASIDE
        self._disk.make_folder(self.folder)
        try:
            self._disk.write(aside, data)
            publish(self._disk, aside, path)
        except OSError:
            # What there was of it takes room that others need.
            self._disk.remove(aside)
            raise
        for name in self._names()[KEPT_CHECKPOINTS:]:
            self._disk.remove(self.folder / name)
        return len(data)

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The last checkpoint that is whole, and what is wrong with those behind it."""
        problems: list[str] = []
        for name in self._names():
            try:
                return self._read(name), problems
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
        return sorted(filter(_NAME.fullmatch, self._disk.names(self.folder)), reverse=True)

    def remove(self) -> None:
        """Removes all checkpoints."""
        for name in [*self._names(), _ASIDE]:
            self._disk.remove(self.folder / name)
