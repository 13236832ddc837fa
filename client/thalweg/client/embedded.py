"""Embedded runs: jobs that are trained on this machine, by processes that share a folder of jobs and one server."""

import logging
import os
import shlex
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from thalweg.client import runs
from thalweg.client.client import Client
from thalweg.client.composition import FolderInUseError, RunningServer, data_policy, load_server, start_fleet
from thalweg.client.errors import LocalError
from thalweg.client.extras import require_ray
from thalweg.client.folder_server import start_embedded_server, used_elsewhere
from thalweg.client.folders import embedded_folder, expanded, folder_token, has_token, is_locked, is_usual
from thalweg.client.jobfile import JobFile
from thalweg.client.records import ENDED
from thalweg.client.runs import Run
from thalweg.client.transfer import bytes_of, refer
from thalweg.contract.endpoint import Address, Endpoint, parse_address
from thalweg.contract.errors import ThalwegError
from thalweg.contract.states import state_name

_log = logging.getLogger(__name__)
# The seconds for which a run waits for the server that uses its folder, and between its attempts.
_JOIN_SECONDS = 30.0
_LOOK_SECONDS = 0.05
_PROBE_SECONDS = 2.0
# Smaller files are copied, so that jobs keep them if they change. The server accepts no larger ones.
_MAX_COPIED_BYTES = 1 << 30
# The seconds between a run's checks whether the others are alive.
_GUARD_SECONDS = 0.25
# On a busy machine, the server of the next run starts some seconds after the end of the previous one.
_BACKOFFS = (0.1, 0.5, 1.0, 2.0, 4.0, 4.0)


class Embedded:
    """This process's use of the embedded jobs of a folder: a client, its own server or another run's, and perhaps a fleet.

    Runs that use one folder at the same time share one server, that of the first. When it ends, another run's process starts the
    server again at the same address, and the jobs of the runs that are alive continue from their last checkpoints.

    `notify` is called with messages for the user. `check` is called while it waits for another run's server, and may raise.
    `settings` are those of ServerConfig; they have no effect on another run's server. Raises ThalwegError if no server
    can be started.
    """

    def __init__(
        self,
        folder: Path,
        notify: Callable[[str], None] = _log.warning,
        check: Callable[[], None] = lambda: None,
        **settings: Any,
    ) -> None:
        self.folder = folder
        self._notify = notify
        self._settings = settings
        self._process = os.getpid()
        if not has_token(folder) and is_locked(folder):
            raise FolderInUseError(used_elsewhere(folder))
        self._token = folder_token(folder)
        self._run = Run(folder)
        self._server: RunningServer | None = None
        self._stack = ExitStack()
        try:
            address = self._serve_or_join(check)
        except BaseException:
            self._run.leave()
            raise
        self._run.joined(address)
        self.client = _EmbeddedClient(address, self._token, folder, self._run.add)
        self._closing = threading.Event()
        self._guardian = threading.Thread(target=self._guard, name="thalweg-embedded", daemon=True)
        self._guardian.start()

    @property
    def place(self) -> str:
        """The options with which commands find a job: none if it is in the default folder."""
        return "" if is_usual(self.folder) else f" --data {shlex.quote(str(self.folder))}"

    def start_fleet(self, slots: int, gpus: float = 0, check: Callable[[], None] = lambda: None) -> None:
        """Starts Ray with `slots` CPU slots, and workers on it as jobs need them. Raises what `check` raises meanwhile.

        The workers run code of jobs, which are this user's own. `gpus` is what one of them takes. Raises LocalError if this
        machine has fewer, for there will be no other machine.
        """
        server = Endpoint(self.client.address, self._token)
        fleet = start_fleet(
            server,
            slots=slots,
            allow_code=True,
            allow_requirements=True,
            data=data_policy(None, (), None),
            name="embedded",
            check=check,
        )
        self._stack.callback(fleet.stop)
        if fleet.gpus < gpus:
            has = f"{fleet.gpus} GPU{'' if fleet.gpus == 1 else 's'}"
            raise LocalError(f"training.resources.gpus: each worker takes {gpus:g}, and Ray finds {has} on this machine")

    def abandon(self, job_id: str) -> None:
        """Does not interrupt a job when this run ends."""
        self._run.jobs.remove(job_id)

    def close(self) -> None:
        """Ends this run's jobs that have not ended, keeps their parameters, and ends all of its processes and threads."""
        if self._closing.is_set() or os.getpid() != self._process:
            return
        try:
            self._interrupt_jobs()
        finally:
            self._closing.set()
            self._guardian.join()
            self._stack.close()
            self.client.close()
            self._run.leave()
            if self._server:
                self._server.stop()

    def _serve_or_join(self, check: Callable[[], None]) -> Address:
        """The address of this process's server, or of another process's on the folder."""
        deadline = time.monotonic() + _JOIN_SECONDS
        while True:
            try:
                self._server = start_embedded_server(self.folder, self._token, **self._settings)
            except FolderInUseError as error:
                address = self._answering()
                if address:
                    return address
                if time.monotonic() > deadline:
                    raise FolderInUseError(
                        f"the data folder {self.folder} is in use by a server that does not answer; "
                        "continue or end the process that it runs in, or choose another folder with --data"
                    ) from error
            else:
                return self._server.address
            check()
            time.sleep(_LOOK_SECONDS)

    def _answering(self) -> Address | None:
        """The address of the server on the folder, None while it does not answer. Raises ThalwegError if it cannot be used."""
        try:
            address = parse_address((self.folder / "address").read_text().strip())
        except (OSError, ValueError):
            return None
        try:
            with Client(address, self._token) as client:
                theirs = client.server_info(_PROBE_SECONDS).version
        except ThalwegError as error:
            if error.reason == "UNAUTHENTICATED":
                raise FolderInUseError(used_elsewhere(self.folder)) from error
            return None
        if theirs != version("thalweg"):
            raise FolderInUseError(
                f"the data folder {self.folder} is in use by release {theirs} of Thalweg, but this is {version('thalweg')}; "
                "wait until that has ended, or choose another folder with --data"
            )
        return address

    def _guard(self) -> None:
        """Starts the server again when another run's server has ended; ends the jobs of runs that were killed."""
        # Imported now, so that it takes no time later.
        load_server()
        problem = ""
        while not self._closing.wait(_GUARD_SECONDS):
            try:
                if self._server:
                    self._bury()
                elif not is_locked(self.folder):
                    self._server = start_embedded_server(self.folder, self._token, self.client.address, **self._settings)
            except FolderInUseError:
                continue
            except ThalwegError as error:
                if str(error) != problem:
                    problem = str(error)
                    self._notify(problem)

    def _bury(self) -> None:
        for job_id in runs.bury(self.folder):
            job = self.client.job(job_id)
            if state_name(job.message.state) not in ENDED:
                job.cancel()

    def _interrupt_jobs(self) -> None:
        for job_id in self._run.jobs:
            try:
                job = self.client.job(job_id)
                if state_name(job.message.state) in ENDED:
                    continue
                job.cancel()
            except ThalwegError as error:
                if error.reason != "JOB_NOT_FOUND":
                    self._notify(f"job {job_id} could not be ended: {error}")
                continue
            self._notify(
                f"job {job_id} was interrupted after {job.message.result.steps:,} steps; its parameters so far are kept. "
                f"To resume: thalweg train --resume {job_id}{self.place}, or client.resume({job_id!r}) in Python"
            )


class _EmbeddedClient(Client):
    """A client of a server on this machine, which survives a change of the server's process.

    Jobs are checked here before they are submitted. Large files are used in place.
    """

    def __init__(self, address: Address, token: str, folder: Path, began: Callable[[str], object]) -> None:
        super().__init__(address, token, own=True)
        self._uploads = folder / "uploads"
        self._connection.began = began
        self._connection.backoffs = _BACKOFFS

    def _prepare(self, job: JobFile) -> None:
        from thalweg.client.models import check  # noqa: PLC0415 - programs that only submit jobs need no model

        check(job)

    def _upload(self, path: Path, temporary: bool, done: Callable[[int], object] = lambda _: None) -> str:
        if bytes_of(path) > _MAX_COPIED_BYTES:
            return refer(path, self._uploads, move=temporary)
        return super()._upload(path, temporary, done)


class Local:
    """A server with Ray and workers on this machine, between `start` and `close`, or as long as a context lasts."""

    def __init__(self, workers: int, folder: Path | None, shared_memory: bool) -> None:
        self._workers = workers
        self._folder = folder
        self._shared_memory = shared_memory
        self._embedded: Embedded | None = None

    def start(self) -> Client:
        """Starts everything, unless it runs. Returns its client. Raises ThalwegError as `local` says."""
        if self._embedded is None:
            require_ray()
            embedded = Embedded(self._folder or embedded_folder(), shared_memory=self._shared_memory)
            try:
                embedded.start_fleet(self._workers)
            except BaseException:
                embedded.close()
                raise
            self._embedded = embedded
        return self._embedded.client

    def close(self) -> None:
        """Ends everything. Jobs that have not ended are interrupted: their parameters are kept, and they can be resumed."""
        embedded, self._embedded = self._embedded, None
        if embedded:
            embedded.close()

    def __enter__(self) -> Client:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def local(workers: int = 2, data: str | Path | None = None, *, shared_memory: bool = True) -> Local:
    """Training on this machine: a server, and Ray with `workers` CPU slots.

    As a context manager it returns a Client; `start()` and `close()` do the same without a context, for example in notebooks.
    Jobs that have not ended when it closes are interrupted: their parameters are kept, and `client.resume` continues them.

    `data` is the folder in which jobs are kept. Runs that use the same folder at the same time, in one process or several, share
    one list of jobs. Without `shared_memory`, parameters and gradients are sent over gRPC, as between machines; the result is the
    same. Raises ThalwegError when it starts, if an extra that it needs, `server` or `workers`, is not installed, or if the folder
    cannot be used.
    """
    return Local(workers, None if data is None else expanded(data), shared_memory)
