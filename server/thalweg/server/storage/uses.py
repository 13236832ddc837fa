"""Which uploads a job uses."""

from thalweg.contract import addresses, manifests
from thalweg.server.storage.interface import Uploads
from thalweg.v1 import job_pb2

# Bytes of a file that say whether it is a manifest.
_START_BYTES = 32


def uploads_of(spec: job_pb2.JobSpec) -> list[str]:
    """The SHA-256s of the uploads that a job's specification names."""
    data = spec.data
    uses = data.sha256, data.validation.sha256, data.test.sha256, spec.model.initial.sha256, spec.code.sha256
    return sorted({sha256 for sha256 in uses if sha256})


def parts_of(spec: job_pb2.JobSpec, uploads: Uploads) -> list[str]:
    """The SHA-256s of the files of a job's data that manifests name. Raises ValueError if one is damaged, and OSError."""
    found = set[str]()
    for part in addresses.sources_of(spec.data).values():
        start = uploads.read(part.sha256, 0, _START_BYTES) if part.sha256 else None
        if start is not None and manifests.is_manifest(start):
            content = uploads.read(part.sha256, 0, manifests.MAX_BYTES + 1)
            found |= {entry.sha256 for entry in manifests.read(content or b"")}
    return sorted(found)
