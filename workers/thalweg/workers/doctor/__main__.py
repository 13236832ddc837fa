"""A process of `thalweg doctor`: reads what to examine from standard input, as JSON, and writes what it found to a file."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from threadpoolctl import threadpool_limits

from thalweg.contract.process import prepare
from thalweg.learning import data, registry
from thalweg.learning.errors import MistakeError, NodeError
from thalweg.learning.objective import notices
from thalweg.v1 import job_pb2
from thalweg.workers.code import ready
from thalweg.workers.data_access import OWN_POLICY, NodeAccess
from thalweg.workers.doctor.examination import examine, tasks_of


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """What a request asks for: the tasks in their order, what each of them computes, and a notice; or the mistake in the job."""
    spec = json_format.ParseDict(asked["spec"], job_pb2.JobSpec())
    files = {sha256: Path(path) for sha256, path in asked["files"].items()}
    fetch = files.__getitem__
    try:
        limits = threadpool_limits(spec.training.threads_per_worker, "blas")
        with limits, ready(spec, fetch, allowed=True), NodeAccess(fetch, OWN_POLICY) as access:
            dataset = data.load(spec, access)
            tasks = tasks_of(spec, len(dataset.train), asked["tasks"])
            order = [tasks[index % len(tasks)] for index in asked["order"]]
            objective = registry.objective(spec, dataset.schema)
            found = examine(objective, spec, dataset, order)
            return {"tasks": order, "found": found, "notice": "; ".join(notices(objective))}
    except (MistakeError, NodeError) as error:
        return {"mistake": str(error)}


def main() -> None:
    """Answers one request."""
    prepare()
    asked = json.load(sys.stdin)
    if asked["processors"]:
        os.sched_setaffinity(0, asked["processors"])
    Path(asked["out"]).write_text(json.dumps(answer(asked)), encoding="utf-8")


if __name__ == "__main__":
    main()
