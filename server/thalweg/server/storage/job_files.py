"""The files of jobs on any disk: checkpoints, and the parameters and the trajectory that a job leaves."""

import base64
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from thalweg.contract import layout as layouts
from thalweg.contract import preparation, tensors
from thalweg.contract.layout import Slab
from thalweg.server.arrays.downloads import Download
from thalweg.server.storage.checkpoints import Checkpoints
from thalweg.server.storage.disk import Disk, publish
from thalweg.server.storage.interface import Uploads
from thalweg.v1 import training_service_pb2

PARAMETERS_FILE = "parameters.safetensors"
TRAJECTORY_FILE = "trajectory.safetensors"
_SLABS = "slabs"


class JobFiles:
    """The files of a server's jobs, each job's in a folder of its own. Parameters may become an upload."""

    def __init__(self, folder: Path, disk: Disk, uploads: Uploads) -> None:
        self.folder = folder
        self.uploads = uploads
        self._disk = disk

    def job_folder(self, job_id: str) -> Path:
        """Where a job's files lie."""
        return self.folder / "jobs" / job_id

    def checkpoints(self, job_id: str) -> Checkpoints:
        """The checkpoints of a job."""
        return Checkpoints(self.job_folder(job_id) / "checkpoints", self._disk)

    def save_parameters(self, job_id: str, header: training_service_pb2.ParametersHeader, slab: Slab) -> None:
        """Keeps a job's parameters as a safetensors file."""
        path = self.job_folder(job_id) / PARAMETERS_FILE
        # The message says it, too; this is for those who read the file without it.
        said = {preparation.PREPROCESSING: preparation.to_json(header.preprocessing)}
        self._save(path, tensors.of_model(header.layout, slab, header.version), header.SerializeToString(), said)

    def parameters(self, job_id: str) -> Download[training_service_pb2.ParametersHeader] | None:
        """The parameters that a job kept, tensor by tensor, where they lie. Raises ValueError if their file is damaged."""
        try:
            found, metadata = tensors.read(self._disk.read(self.job_folder(job_id) / PARAMETERS_FILE))
        except FileNotFoundError:
            # There are none, or the job is deleted just now.
            return None
        header = training_service_pb2.ParametersHeader.FromString(base64.b64decode(metadata[layouts.HEADER]))
        return Download(header, [found[tensor.name] for tensor in header.layout.tensors])

    def export_parameters(self, job_id: str) -> str | None:
        """Copies the parameters that a job kept into an upload, and gives its SHA-256. None if it kept none."""
        kept = self.parameters(job_id)
        if kept is None:
            return None
        named = {tensor.name: array for tensor, array in zip(kept.header.layout.tensors, kept.arrays, strict=True)}
        name, digest = str(uuid.uuid4()), hashlib.sha256()
        try:
            for piece in tensors.pieces(named, {}):
                digest.update(piece)
                self.uploads.receive(name, piece)
            if not self.uploads.finish(name, digest.hexdigest()):
                raise OSError("what was written there is not what is read")
        finally:
            self.uploads.discard(name)
        return digest.hexdigest()

    def save_trajectory(self, job_id: str, header: training_service_pb2.TrajectoryHeader, slabs: Sequence[Slab]) -> None:
        """Keeps the slabs of a job's trajectory, each of shape (elements), as one array of shape (versions, elements)."""
        self._save(self.job_folder(job_id) / TRAJECTORY_FILE, {_SLABS: slabs}, header.SerializeToString())

    def trajectory(self, job_id: str) -> Download[training_service_pb2.TrajectoryHeader] | None:
        """The trajectory that a job kept, of shape (versions, elements), where it lies. Raises ValueError if it is damaged."""
        try:
            found, metadata = tensors.read(self._disk.read(self.job_folder(job_id) / TRAJECTORY_FILE))
        except FileNotFoundError:
            return None
        header = training_service_pb2.TrajectoryHeader.FromString(base64.b64decode(metadata[layouts.HEADER]))
        return Download(header, [found[_SLABS]])

    def remove_result(self, job_id: str) -> int:
        """Removes the parameters and the trajectory that a job kept. Gives their size in bytes. Raises OSError.

        What reads them goes on.
        """
        size = 0
        for name in (PARAMETERS_FILE, TRAJECTORY_FILE):
            path = self.job_folder(job_id) / name
            with suppress(FileNotFoundError):
                size += self._disk.read(path).nbytes
                self._disk.remove(path)
        return size

    def _save(
        self, path: Path, named: Mapping[str, tensors.Tensor], header: bytes, said: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._disk.make_folder(path.parent)
        aside = path.with_suffix(".part")
        self._disk.write(aside, tensors.pieces(named, {layouts.HEADER: base64.b64encode(header).decode(), **said}))
        publish(self._disk, aside, path)
