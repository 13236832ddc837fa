"""How a worker's failure is reported to the server."""

import logging

from thalweg.learning.data.errors import AbsentError
from thalweg.learning.errors import MistakeError, NodeError
from thalweg.v1 import parameter_service_pb2 as pb

_log = logging.getLogger(__name__)


def failure_of(error: Exception) -> pb.Failure:
    """How an exception is reported to the server."""
    match error:
        case AbsentError():
            return pb.Failure(problem=str(error))
        # Before MistakeError: data that is too large for this machine is both.
        case NodeError():
            return pb.Failure(problem=str(error), scope=pb.Failure.SCOPE_NODE)
        case MistakeError():
            return pb.Failure(problem=str(error), scope=pb.Failure.SCOPE_JOB)
        case MemoryError():
            problem = f"this worker has too little memory{f': {error}' if str(error) else ''}"
            return pb.Failure(problem=problem, scope=pb.Failure.SCOPE_NODE)
        case OSError() | ImportError():
            return pb.Failure(problem=f"{type(error).__name__}: {error}", scope=pb.Failure.SCOPE_NODE)
    _log.error("the worker failed", exc_info=error)
    return pb.Failure(problem=f"{type(error).__name__}: {error}")
