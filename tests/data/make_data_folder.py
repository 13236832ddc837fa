"""Makes the data folder of a server that was killed while a job was running, for tests/server/test_upgrade.py.

From the root of a checkout, before the data format changes (`FORMAT` in server/thalweg/server/storage/tables/schema.py):
    python -m tests.data.make_data_folder tests/data/data-folder-N.tar.gz

| file | commit | format |
|---|---|---|
| data-folder-1.tar.gz | ac4f90c, by this script as commit 3b957c5 has it | none |
| data-folder-2.tar.gz | 3b957c5 | 3 |

A file that is there never changes. The jobs of data-folder-2:

- `undisturbed`: succeeded. `running`, `queued`, `paused`, `cancelled`, `interrupted` are equal jobs that have not, and end
  with its digest; all of them but `queued` have checkpoints.
- `failed`: its parameters are not finite.
- `uploaded`: succeeded, and learned from an upload; `waiting` is queued and needs the same upload.
- `continued`: queued, and starts from the parameters of `undisturbed`, which are an upload too.

Half of a further upload has been received. Samples are zeros and ones, one a step, so that no processor rounds differently.
"""

import contextlib
import hashlib
import io
import os
import sys
import tarfile
import tempfile
import threading
from pathlib import Path

import numpy as np
from google.protobuf import json_format

from tests.end_to_end.cluster import running_server, stub_of
from tests.end_to_end.command import wait_for
from tests.end_to_end.peer import HoldAfter, proxy
from tests.server.test_training_service import upload
from thalweg.contract.endpoint import Endpoint
from thalweg.server.process import Server
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb
from thalweg.v1.training_service_pb2_grpc import TrainingServiceStub
from thalweg.workers.worker import work

# Steps that a job takes before it is held.
STEPS = 17
EQUAL = ("running", "queued", "paused", "cancelled", "interrupted")
HALF = hashlib.sha256(b"half of it and the rest").hexdigest()


def spec(**changes: object) -> job_pb2.JobSpec:
    given = {
        "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"},
        "data": {"builtin": "xor"},
        "training": {"epochs": 10, "batch_size": 1, "microbatches": 1},
        "optimizer": {"adam": {}},
    }
    return json_format.ParseDict({**given, **changes}, job_pb2.JobSpec())


def create(stub: TrainingServiceStub, job_id: str, **changes: object) -> None:
    stub.CreateJob(pb.CreateJobRequest(spec=spec(**changes), job_id=job_id, request_id=f"request-{job_id}"))


def hold(server: Server, stub: TrainingServiceStub, job_id: str, held: contextlib.ExitStack) -> None:
    """Has a job trained until it has a checkpoint and its worker waits."""
    create(stub, job_id)
    hold = HoldAfter(STEPS)
    held.callback(hold.released.set)
    address = held.enter_context(proxy(server.address, hold))
    threading.Thread(target=work, args=(Endpoint(address), job_id, "worker"), daemon=True).start()
    assert hold.holding.wait(60)
    wait_for(lambda: stub.GetJob(pb.GetJobRequest(job_id=job_id)).job.progress.checkpoints.written)


def main(target: Path) -> None:
    folder = Path(tempfile.mkdtemp())
    settings = {"checkpoint_seconds": 0.0, "shared_memory": False}
    with contextlib.ExitStack() as held:
        with running_server(folder, **settings) as server, stub_of(server) as stub:
            hold(server, stub, "interrupted", held)
        # As the server of a run that ended does with its jobs.
        with running_server(folder, **settings, resume_unfinished=False):
            pass
        server = held.enter_context(running_server(folder, **settings))
        stub = held.enter_context(stub_of(server))
        create(stub, "undisturbed")
        work(Endpoint(server.address), "undisturbed", "worker")
        create(stub, "failed", optimizer={"sgd": {"learning_rate": 1e30}})
        work(Endpoint(server.address), "failed", "worker")
        file = io.BytesIO()
        np.savez(file, x=np.eye(2, dtype=np.float32), y=np.ones(2, np.float32))
        sha256 = upload(stub, file.getvalue())
        create(stub, "uploaded", data={"npz": "a.npz", "sha256": sha256})
        work(Endpoint(server.address), "uploaded", "worker")
        create(stub, "waiting", data={"npz": "a.npz", "sha256": sha256})
        initial = {"initial": {"job": "undisturbed"}, "layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"}
        create(stub, "continued", model=initial)
        hold(server, stub, "cancelled", held)
        stub.CancelJob(pb.CancelJobRequest(job_id="cancelled"))
        hold(server, stub, "paused", held)
        stub.ScaleJob(pb.ScaleJobRequest(job_id="paused", workers=0))
        hold(server, stub, "running", held)
        create(stub, "queued")
        (folder / "uploads" / f"{HALF}.part").write_bytes(b"half of it")
        # As by a kill: nothing is stopped.
        (folder / "address").unlink()
        with tarfile.open(target, "w:gz") as archive:
            for name in sorted(path.name for path in folder.iterdir() if path.name != "reserve"):
                archive.add(folder / name, f"data/{name}")
        os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
