"""Makes `data-folder-1.tar.gz`: the data folder of a server of an early release that was killed while a job was running.

Run from the root of a checkout of the commit ac4f90c, with an interpreter that has its dependencies:
    python PATH/make_data_folder.py data-folder-1.tar.gz

The jobs: `undisturbed` and `running` are equal, `running` was cut off after some steps; `queued`, `failed`, `cancelled` and
`uploaded`, which learns from an upload. Samples are zeros and ones, one a step, so that no processor rounds differently.
"""

import io
import os
import sys
import tarfile
import tempfile
import threading
from pathlib import Path

ROOT = Path.cwd()
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("proto", "server", "workers", "client"))]
import thalweg  # noqa: E402

thalweg.__path__ = [str(ROOT / part / "thalweg") for part in ("proto", "server", "workers", "client")]

import numpy as np  # noqa: E402
from google.protobuf import json_format  # noqa: E402

from tests.end_to_end.cluster import stub_of  # noqa: E402
from tests.end_to_end.peer import HoldAfter, proxy  # noqa: E402
from tests.server.test_training_service import upload  # noqa: E402
from thalweg.contract.channel import Address  # noqa: E402
from thalweg.server.service import Server, ServerConfig  # noqa: E402
from thalweg.v1 import job_pb2  # noqa: E402
from thalweg.v1 import training_service_pb2 as pb  # noqa: E402
from thalweg.workers.worker import work  # noqa: E402


def spec(**changes: object) -> job_pb2.JobSpec:
    given = {
        "model": {"layers": [{"dense": {"units": 1}}], "loss": "mean_squared_error"},
        "data": {"builtin": "xor"},
        "training": {"epochs": 10, "batch_size": 1, "microbatches": 1},
        "optimizer": {"adam": {}},
    }
    return json_format.ParseDict({**given, **changes}, job_pb2.JobSpec())


def main(target: Path) -> None:
    folder = Path(tempfile.mkdtemp())
    config = ServerConfig(address=Address("127.0.0.1", 0), data=folder, checkpoint_seconds=0.0, shared_memory=False)
    server = Server(config)
    server.start()
    with stub_of(server) as stub:

        def create(job_id: str, **changes: object) -> None:
            stub.CreateJob(pb.CreateJobRequest(spec=spec(**changes), job_id=job_id, request_id=f"request-{job_id}"))

        create("undisturbed")
        work(server.address, None, "undisturbed", "worker")
        create("failed", optimizer={"sgd": {"learning_rate": 1e30}})
        work(server.address, None, "failed", "worker")
        file = io.BytesIO()
        np.savez(file, x=np.eye(2, dtype=np.float32), y=np.ones(2, np.float32))
        create("uploaded", data={"npz": "a.npz", "sha256": upload(stub, file.getvalue())})
        work(server.address, None, "uploaded", "worker")
        for job_id in ("cancelled", "running"):
            create(job_id)
            hold = HoldAfter(17)
            with proxy(server.address, hold) as address:
                threading.Thread(target=work, args=(address, None, job_id, "worker"), daemon=True).start()
                assert hold.holding.wait(60)
                while not stub.GetJob(pb.GetJobRequest(job_id=job_id)).job.progress.checkpoints.written:
                    pass
                if job_id == "cancelled":
                    stub.CancelJob(pb.CancelJobRequest(job_id=job_id))
                    continue
                create("queued")
                # As by a kill: nothing is stopped.
                (folder / "address").unlink()
                with tarfile.open(target, "w:gz") as archive:
                    archive.add(folder, "data")
                os._exit(0)


main(Path(sys.argv[1]).absolute())
