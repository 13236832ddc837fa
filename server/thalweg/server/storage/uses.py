"""Which uploads a job uses."""

from thalweg.v1 import job_pb2


def uploads_of(spec: job_pb2.JobSpec) -> list[str]:
    """The SHA-256s of the uploads that a job uses."""
    return sorted({sha256 for sha256 in (spec.data.sha256, spec.model.initial.sha256, spec.code.sha256) if sha256})
