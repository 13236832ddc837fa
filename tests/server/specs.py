"""Specifications of small jobs."""

from typing import Any

import numpy as np
from google.protobuf import json_format

from thalweg.server import validation
from thalweg.server.streams.wire import Received
from thalweg.v1 import job_pb2

# The numbers of a message, which a coordinator never looks at.
PAYLOAD = Received(np.empty(0, np.float32), 0)


def make_spec(**training: Any) -> job_pb2.JobSpec:
    """A complete specification, with some fields of `training`."""
    spec = {
        "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"},
        "data": {"builtin": "xor"},
        "training": training,
        "optimizer": {"momentum": {"learning_rate": 0.1}},
    }
    return validation.complete(json_format.ParseDict(spec, job_pb2.JobSpec()))
