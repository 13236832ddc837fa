"""The client of a server, for Python programs."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from thalweg.client.access import Access
from thalweg.client.arrays import Arrays, write_arrays
from thalweg.client.batches import Batch, write_batches
from thalweg.client.cluster import Cluster
from thalweg.client.connection import CALL_SECONDS, Connection
from thalweg.client.job import Job
from thalweg.client.jobfile import JobFile, JobSource, Settings, load_job, with_data
from thalweg.client.mapping import is_text
from thalweg.client.packing import pack
from thalweg.client.parts import Parts, write_manifest
from thalweg.client.transfer import Meter, UploadProgress, bytes_of, upload
from thalweg.contract.endpoint import Address, Endpoint, parse_address
from thalweg.contract.errors import Violation, invalid
from thalweg.contract.manifests import Entry
from thalweg.contract.tls import Tls
from thalweg.v1 import training_service_pb2 as pb

# A server may have to wait for its disk before it can confirm that a job is durable.
_CREATE_SECONDS = 60.0


class Client:
    """The jobs of one server. Must be closed, or used as a context manager. All methods may be called from any thread.

    `address` is HOST:PORT. With `tls` connections are encrypted: `Tls("ca.pem")`, and for a server that requires certificates of
    its clients `Tls("ca.pem", "client.pem", "client-key.pem")`. The files are read again when they change.

    `own` says that all jobs there are this user's own: their code may run in this process, for predictions. Every failure raises
    ThalwegError, whose message says what to do.
    """

    def __init__(self, address: str | Address, token: str | None = None, *, tls: Tls | None = None, own: bool = False) -> None:
        self.address = _address(address) if isinstance(address, str) else address
        self._connection = Connection(Endpoint(self.address, token, tls))
        self._connection.own = own

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection. Jobs continue."""
        self._connection.close()

    def submit(
        self,
        job: JobSource | JobFile,
        settings: Settings = (),
        *,
        model: object = None,
        loss: object = None,
        data: Arrays | Iterator[Batch] | None = None,
        name: str | None = None,
        id: str | None = None,  # noqa: A002 - its name everywhere else
        request_id: str | None = None,
        shared: bool = False,
        progress: UploadProgress | None = None,
    ) -> Job:
        """Submits a job to the server, with the files that it needs. Returns the job, which runs independently of this client.

        `job` is the name of a packaged job, the path of a TOML file, a dictionary of the same shape, or a JobSpec. `settings` are
        laid over it: `{"training.epochs": 5}`, or texts `training.epochs=5`. `data` is a pair of arrays, samples and targets, to
        learn from in place of what the job says; or a table: a data frame, or a dictionary of columns by their names. Or it is an
        iterator of batches, each of which is a pair of arrays or a part of the table. They are written one by one to a temporary
        folder, which TMPDIR can choose, and may be more than memory holds.

        `model` is a torch.nn.Module, trained from its current parameters and buffers, or a function that makes one, in place of
        the job's model. `loss` is then the name of a loss, `model` for the module's own, or a function of (outputs, targets).
        Both are pickled, and unpickled by workers only (`by_value.with_model`).

        `progress` is called in this thread with two integers while files are uploaded: the bytes that the server has, and the
        bytes of all files. The first call has 0 bytes, the last one all; between them there is about one for each MiB. What the
        server had before, also of an upload that broke off, counts. Bytes that are lost with a connection no longer do. An
        exception of `progress` ends the upload, which can be resumed, and is raised here. It is not called without files.

        `shared` lets all others read the job from the start (`Job.share`).

        `name` replaces the job's name; `id` chooses its id. Two calls with the same `request_id` create one job. Raises
        ThalwegError if the job is not right, or is not accepted.
        """
        with ExitStack() as stack:
            arrays: Path | Parts | None = None
            if data is not None:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="thalweg-arrays-")))
                arrays = write_batches(data, folder) if isinstance(data, Iterator) else write_arrays(data, folder)
            if not isinstance(job, JobFile):
                loaded = load_job(job, settings, arrays)
            else:
                loaded = with_data(job, arrays) if arrays else job
            if model is not None:
                from thalweg.client.by_value import with_model  # noqa: PLC0415 - needs extras

                loaded = with_model(loaded, model, loss, Path(stack.enter_context(TemporaryDirectory(prefix="thalweg-model-"))))
            elif loss is not None:
                raise invalid(Violation("loss", "comes with a model by value; for a job's own model, set model.loss"))
            spec = loaded.spec
            if name is not None:
                spec.name = name
            self._prepare(loaded)
            code = None
            if loaded.code:
                code = pack(loaded.code, Path(stack.enter_context(TemporaryDirectory(prefix="thalweg-code-"))))
            files = list(loaded.uploads())
            meter = Meter(
                progress, sum(map(bytes_of, [*(path for file in files for path in file.paths), *([code] if code else [])]))
            )
            for file in files:
                file.message.sha256 = self._upload_all(file.given, file.given == arrays, meter)
            if code:
                # Not what `_upload` may do: the job keeps its code, whatever becomes of the file.
                spec.code.sha256 = upload(self._connection, code, meter)
                meter.finish(bytes_of(code))
        request = pb.CreateJobRequest(
            spec=spec, job_id=_job_id(id or ""), request_id=request_id or str(uuid.uuid4()), shared=shared
        )
        answer = self._connection.call(self._connection.stub.CreateJob, request, seconds=_CREATE_SECONDS)
        self._connection.began(answer.job.id)
        return Job(self._connection, answer.job)

    def _prepare(self, job: JobFile) -> None:
        """Called before a job's files are uploaded."""

    def _upload_all(self, files: Path | Parts, temporary: bool, meter: Meter) -> str:
        """Uploads a file, or several and their manifest, whose SHA-256 it returns."""
        if isinstance(files, Path):
            return self._upload_one(files, temporary, meter).sha256
        entries = [self._upload_one(path, temporary, meter)._replace(path=name) for name, path in files.items()]
        with TemporaryDirectory(prefix="thalweg-manifest-") as folder:
            return self._upload(write_manifest(entries, Path(folder) / "manifest.json"), temporary=True)

    def _upload_one(self, path: Path, temporary: bool, meter: Meter) -> Entry:
        # Before it may be moved.
        size = bytes_of(path)
        sha256 = self._upload(path, temporary, meter)
        meter.finish(size)
        return Entry(str(path), size, sha256)

    def _upload(self, path: Path, temporary: bool, done: Callable[[int], object] = lambda _: None) -> str:  # noqa: ARG002 - of subclasses
        """Puts a file, which may be `temporary`, where the server finds it. Returns its SHA-256."""
        return upload(self._connection, path, done)

    def resume(self, id: str, max_seconds: float | None = None) -> Job:  # noqa: A002 - its name everywhere else
        """Resumes a job that was cancelled, interrupted or has failed, from its last checkpoint. Returns it.

        A job that has not ended is not changed. `max_seconds` is its time limit from now on, as for `Job.resume`. Raises
        ThalwegError (NOT_RESUMABLE) if it has succeeded, or has run for as long as it may.
        """
        job = self.job(id)
        job.resume(max_seconds)
        return job

    def jobs(self) -> list[Job]:
        """All jobs of the server, the newest first."""
        jobs: list[Job] = []
        token = ""
        while True:
            page = self._connection.call(self._connection.stub.ListJobs, pb.ListJobsRequest(page_token=token))
            jobs += [Job(self._connection, message) for message in page.jobs]
            token = page.next_page_token
            if not token:
                return jobs

    def job(self, id: str) -> Job:  # noqa: A002 - its name everywhere else
        """One job. Raises ThalwegError if the server has no job with this id."""
        answer = self._connection.call(self._connection.stub.GetJob, pb.GetJobRequest(job_id=_job_id(id)))
        return Job(self._connection, answer.job)

    @property
    def cluster(self) -> Cluster:
        """The server's fleets and their nodes, for operators."""
        return Cluster(self._connection)

    @property
    def access(self) -> Access:
        """Who may use the server: its tokens, and who this client is."""
        return Access(self._connection)

    def server_info(self, seconds: float = CALL_SECONDS) -> pb.GetServerInfoResponse:
        """The server's version, its fleets, and the largest upload that it accepts."""
        return self._connection.call(self._connection.stub.GetServerInfo, pb.GetServerInfoRequest(), seconds=seconds)


def _job_id(text: str) -> str:
    """An id that can be sent. The server checks which ids are valid."""
    if not is_text(text):
        raise invalid(Violation("job_id", f"invalid job id {text!r}; it is not UTF-8"))
    return text


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise invalid(Violation("server", str(error))) from error
