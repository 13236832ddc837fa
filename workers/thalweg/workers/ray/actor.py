"""A worker in a process of Ray. Imports nothing that imports gRPC before the process is prepared."""

import os
import platform
import threading
from typing import TYPE_CHECKING

from thalweg.contract.process import prepare
from thalweg.workers.crashes import log_of_errors
from thalweg.workers.ray.processes import end_with

if TYPE_CHECKING:
    from thalweg.contract.endpoint import Endpoint
    from thalweg.workers.data_access import DataPolicy


class WorkerActor:
    """The Ray actor around a worker."""

    def __init__(self) -> None:
        prepare()
        self._answered = threading.Event()

    def place(self) -> tuple[str, str, str]:
        """The node that it runs on, Ray's id and the name, and the path of its log there."""
        import ray  # noqa: PLC0415 - where the actor runs

        return ray.get_runtime_context().get_node_id(), platform.node(), log_of_errors()

    def work(self, server: "Endpoint", job_id: str, fleet: str, fleet_id: str, allow_code: bool, policy: "DataPolicy") -> str:
        """Works until the server says goodbye. `allow_code` is whether it may run code of the job's author.

        `policy` says what data may use.
        """
        from thalweg.v1.parameter_service_pb2 import Place  # noqa: PLC0415
        from thalweg.workers.worker import work  # noqa: PLC0415 - imports gRPC

        end_with(os.getppid(), lambda: os._exit(1))
        node, name, _ = self.place()
        place = Place(fleet=fleet_id, node=node, name=name)
        who = f"{fleet}/{name}/{os.getpid()}"
        return work(server, job_id, who, self._answered.set, place, allow_code, own_process=True, policy=policy)

    def answered(self) -> bool:
        """Waits until the first task is done."""
        return self._answered.wait()
