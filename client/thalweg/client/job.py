"""A job on a server, for Python programs."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import grpc

from thalweg.client import records
from thalweg.client.connection import Connection, code_of
from thalweg.client.errors import JobFailedError
from thalweg.client.extras import needs
from thalweg.client.folders import AnyPath, expanded
from thalweg.client.prediction import Given, Prediction
from thalweg.client.records import ENDED, Event, Progress, Result, StoryEntry, Trajectory
from thalweg.client.transfer import download_data, download_parameters, download_trajectory
from thalweg.client.weights import save_weights
from thalweg.contract import layout as layouts
from thalweg.contract import tensors
from thalweg.contract.layout import Slab
from thalweg.contract.states import ENDED as ENDED_STATES
from thalweg.contract.states import state_name
from thalweg.v1 import job_pb2
from thalweg.v1 import training_service_pb2 as pb

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure


# The seconds for which a broken watch is resumed: a server that restarts is back by then.
_RECONNECT_SECONDS = 60.0
# A stream that lasted this long was connected: no attempt to connect takes that long.
_STEADY_SECONDS = 40.0
_FIRST_BACKOFF = 0.2
_MAX_BACKOFF = 5.0
# The seconds for which an open stream is read for recorded events.
_HISTORY_SECONDS = 2.0
# The events within that time from which it follows that there are more of those.
_BACKLOG = 200
# The codes of a stream whose server or network is lost.
_BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)


class Job:
    """One job. Made by `Client.submit`, `Client.job` and `Client.jobs`."""

    def __init__(self, connection: Connection, message: job_pb2.Job) -> None:
        self._connection = connection
        self._seen = 0
        self.message = message

    def __repr__(self) -> str:
        return f"Job({self.id!r}, {state_name(self.message.state)})"

    @property
    def id(self) -> str:
        """The id, unique on its server."""
        return self.message.id

    @property
    def spec(self) -> job_pb2.JobSpec:
        """The specification, with every default filled in."""
        return self.message.spec

    @property
    def state(self) -> str:
        """QUEUED, RUNNING, SUCCEEDED, FAILED or CANCELLED, as of now."""
        return state_name(self.refresh().state)

    @property
    def progress(self) -> Progress:
        """The job's progress, as of now."""
        return records.progress(self.refresh().progress)

    def refresh(self) -> job_pb2.Job:
        """Gets the job's current record, which is then `message`. The record of a job that has succeeded does not change."""
        return self._refreshed(self._connection.call)

    def _refreshed(self, call: Callable[..., pb.GetJobResponse]) -> job_pb2.Job:
        if self.message.state != job_pb2.JOB_STATE_SUCCEEDED:
            self.message = call(self._connection.stub.GetJob, pb.GetJobRequest(job_id=self.id)).job
        return self.message

    def watch(self, after: int = 0, say: Callable[[str], object] = lambda _: None) -> Iterator[Event]:
        """Yields the job's events after the sequence number `after`, first those already recorded, until the job has ended.

        A resumed job's events include its earlier end. After the last event, `message` holds the final record. A broken
        connection is resumed; if that does not succeed within a minute, raises ThalwegError. `say` is called
        with a message for the user when the server cannot be reached, and with the job's status when it can be reached again.
        """
        backoff, broken_since = _FIRST_BACKOFF, None
        while True:
            opened = time.monotonic()
            try:
                if broken_since is not None:
                    self._refreshed(self._connection.call_once)
                    say(self.message.status)
                for message in self._stream(after):
                    after = self._seen = message.sequence
                    backoff, broken_since = _FIRST_BACKOFF, None
                    event = records.event(message)
                    if event:
                        yield event
                self._refreshed(self._connection.call_once)
                return
            except grpc.RpcError as error:
                now = time.monotonic()
                if broken_since is None or now - opened > _STEADY_SECONDS:
                    backoff, broken_since = _FIRST_BACKOFF, now
                if code_of(error) not in _BROKEN or now + backoff > broken_since + _RECONNECT_SECONDS:
                    raise self._connection.translated(error) from error
                say(f"the server at {self._connection.address} cannot be reached; trying again")
            time.sleep(backoff)
            backoff = min(2 * backoff, _MAX_BACKOFF)

    def _stream(self, after: int, seconds: float | None = None, until_now: bool = False) -> Iterator[pb.Event]:
        request = pb.WatchJobRequest(job_id=self.id, after_sequence=after, until_now=until_now)
        call = self._connection.stub.WatchJob(request, metadata=self._connection.metadata, timeout=seconds)
        try:
            with self._connection.open_throughout():
                for response in call:
                    yield response.event
        finally:
            call.cancel()

    def wait(self, progress: bool | None = None) -> Result:
        """Waits until the job has ended. Returns its result. Raises JobFailedError if it failed.

        `progress` says whether to show a bar meanwhile, in the notebook or on stderr. By default it is shown in
        notebooks and interactive interpreters.
        """
        from thalweg.client.cli.display import display  # noqa: PLC0415 - it imports this module

        self.refresh()
        shown = hasattr(sys, "ps1") if progress is None else progress
        with ExitStack() as stack:
            screen = stack.enter_context(display(self.id)) if shown and state_name(self.message.state) not in ENDED else None
            while state_name(self.message.state) not in ENDED:
                for event in self.watch(self._seen):
                    if screen:
                        screen.show(event)
        if self.message.state == job_pb2.JOB_STATE_FAILED:
            raise JobFailedError(self.id, self.message.error)
        return self.last_result()

    def result(self) -> Result:
        """The job's result so far, in any state."""
        return records.result(self.refresh())

    def last_result(self) -> Result:
        """The last result that this client received; does not call the server."""
        return records.result(self.message)

    def cancel(self) -> str:
        """Ends the job, if it has not ended. Returns its state. Its parameters are kept.

        Returns when the end is durable on the server, which may take long for a large model. Raises ThalwegError
        (STORAGE_FULL) if it waits for room there: the job has ended, and the server records it as soon as it can.
        """
        while True:
            # The server answers before the call's deadline, and continues to end the job.
            answer = self._connection.call(self._connection.stub.CancelJob, pb.CancelJobRequest(job_id=self.id))
            self.message = answer.job
            if self.message.state in ENDED_STATES:
                return state_name(self.message.state)

    def resume(self, max_seconds: float | None = None) -> None:
        """Resumes the job from its last checkpoint, if it was cancelled or has failed. Does nothing if it has not ended.

        `max_seconds` is its time limit from now on (`training.max_seconds`), 0 for none; by default it stays. Raises ThalwegError
        (NOT_RESUMABLE) if it has succeeded, or has run for as long as it may, and (JOB_NOT_ENDED) if a limit is given for a job
        that has not ended.
        """
        request = pb.ResumeJobRequest(job_id=self.id, max_seconds=max_seconds)
        answer = self._connection.call(self._connection.stub.ResumeJob, request)
        self._connection.began(self.id)
        self.message = answer.job

    def delete(self) -> None:
        """Deletes the job, which must have ended, with all its files and events."""
        self._connection.call(self._connection.stub.DeleteJob, pb.DeleteJobRequest(job_id=self.id), retry=False)

    def scale(self, workers: int | None = None, priority: int | None = None) -> str:
        """Changes the number of workers that the job requests, 0 to pause it, and its priority; None leaves what is.

        Neither affects its result. Returns a note for the user, such as that there are fewer CPU slots; it may be empty. Raises
        ValueError if neither is given.
        """
        if workers is None and priority is None:
            raise ValueError("scale takes a number of workers, a priority, or both")
        request = pb.ScaleJobRequest(job_id=self.id, workers=workers, priority=priority)
        answer = self._connection.call(self._connection.stub.ScaleJob, request)
        self.message = answer.job
        return answer.note

    def share(self, shared: bool = True) -> None:
        """Lets all others with a token read the job, its parameters, its data and its code, or no longer.

        They cannot change it.
        """
        request = pb.ShareJobRequest(job_id=self.id, shared=shared)
        self.message = self._connection.call(self._connection.stub.ShareJob, request).job

    def keep(self, kept: bool = True) -> None:
        """Keeps the job's result for good, or no longer, where the server removes results after some time."""
        request = pb.KeepJobRequest(job_id=self.id, kept=kept)
        self.message = self._connection.call(self._connection.stub.KeepJob, request).job

    def story(self) -> list[StoryEntry]:
        """The server's recent decisions about the job, and their reasons, the oldest first. Empty if it has none.

        Raises ThalwegError if there is no such job, or if the server cannot be reached.
        """
        answer = self._connection.call(self._connection.stub.GetStory, pb.GetStoryRequest(job_id=self.id))
        return [records.story_entry(entry) for entry in answer.entries]

    def slab(self) -> tuple[pb.ParametersHeader, Slab]:
        """The parameters in one array, and its header: layout, version, SHA-256 and preprocessing."""
        return download_parameters(self._connection, self.id)

    def parameters(self) -> dict[str, Slab]:
        """The parameters by name, as they are now: arrays of the model's dtype, named and shaped as in torch.nn.Sequential.

        They are in the order of the slab, over whose bytes `weights_sha256` is.
        """
        header, slab = self.slab()
        return layouts.views(header.layout, slab)

    def state_dict(self) -> "dict[str, torch.Tensor]":
        """The parameters and buffers as they are now, as `net.load_state_dict` takes them: by all names, in the module's order.

        Statistics, constants, counters, which have the number of updates, and buffers of integers are among them. Tied weights
        are one tensor. Parameters that a server of an earlier release kept are in the order of the slab. Raises ThalwegError if
        PyTorch is not installed.
        """
        with needs("torch", "PyTorch is"):
            import torch  # noqa: PLC0415 - an extra
        header, slab = self.slab()
        found: dict[int, torch.Tensor] = {}
        arrays = tensors.state(header.layout, slab, header.version)
        for array in arrays.values():
            # What is not in the slab may be for reading only.
            found.setdefault(id(array), torch.from_numpy(array if array.flags.writeable else array.copy()))
        return {name: found[id(array)] for name, array in arrays.items()}

    def save(self, path: AnyPath) -> pb.ParametersHeader:
        """Writes the parameters to a safetensors file, completely or not at all. Returns their header.

        Raises ThalwegError if the file cannot be written, or its suffix is that of another format.
        """
        header, slab = self.slab()
        save_weights(expanded(path), self.message, header, slab)
        return header

    def trajectory(self) -> Trajectory:
        """The parameters at some of the steps of a job that has ended, from the first to the last."""
        header, slabs = download_trajectory(self._connection, self.id)
        return Trajectory(header.layout, tuple(header.versions), slabs)

    def download_data(self, sha256: str, folder: AnyPath) -> Path:
        """The data that was uploaded under a SHA-256, as a file in a folder."""
        return download_data(self._connection, sha256, expanded(folder))

    def prepare(self, x: Given) -> Slab:
        """Samples `x`, samples first, as the model sees them: of its dtype, and prepared as the job's data was.

        They are the input for another implementation of the model with the job's parameters. Raises ThalwegError if they are not
        of the kind that the job was trained on.
        """
        from thalweg.client import models  # noqa: PLC0415 - programs that only submit jobs need no model

        return models.prepare_samples(self.slab()[0], x, self.spec)

    # Of a model that returns several outputs a dictionary of arrays: with a union, type checkers would refuse `.shape` for all.
    def predict(self, x: Given, *, allow_code: bool = False) -> Slab | Any:
        """The model's outputs for samples `x`, samples first, or rows of a table, which are prepared as the job's data was.

        Rows are a data frame, or a dictionary of columns by their names, which may be in any order; a category that the training
        data does not have is a warning. They may also be the path of a file or a folder, or a URL. If the job has learned from
        images, `x` may be the path of one, of a folder of them, or a list of paths. Outputs are the last layer's: logits, if the
        loss is softmax_cross_entropy; for targets that were prepared, in the targets' units. A model that returns several gives a
        dictionary of arrays by name, as `Prediction.named`. A model that is code runs in this process if `allow_code` is true, or
        if the job is one of this user's own server on this machine, as of `local()`.
        """
        prediction = self.prediction(x, allow_code=allow_code)
        for notice in prediction.notices:
            warnings.warn(notice, stacklevel=2)
        return dict(prediction.named) or prediction.outputs

    def prediction(self, x: Given, *, allow_code: bool = False) -> Prediction:
        """The outputs for samples, as of `predict`, and, of a classifier, classes, their names and probabilities."""
        from thalweg.client import models  # noqa: PLC0415 - programs that only submit jobs need no model

        header, slab = self.slab()
        with TemporaryDirectory(prefix="thalweg-") as folder:
            fetch = partial(self.download_data, folder=folder)
            return models.predict(self.spec, header, slab, x, fetch if allow_code or self.is_own else None)

    @property
    def is_own(self) -> bool:
        """Whether the job is one of this user's own server on this machine, so that its code is this user's, too."""
        return self._connection.own

    def plot(self, slice: str | None = None, path: AnyPath | None = None) -> "Figure":  # noqa: A002 - as the command's option
        """The job's learning curve, or the loss over one weight, as a matplotlib figure, which a notebook shows.

        `slice` names the weight, as `0.weight[3,5]`, or is `auto` for the one that training moved the most. `path` is a .png,
        .svg or .pdf file to write as well. Needs the extra `plot`, and for a slice `workers`. Raises ThalwegError.
        """
        from thalweg.client import plotting  # noqa: PLC0415 - it imports this module

        if slice is None:
            figure = plotting.learning_curve(self)
        else:
            figure = plotting.loss_slice(self, None if slice == "auto" else plotting.parse_element(slice))
        if path is not None:
            plotting.save_figure(figure, expanded(path))
        return figure

    def history(self) -> list[Event]:
        """The events up to now, without waiting for further ones."""
        if state_name(self.refresh().state) in ENDED:
            return list(self.watch())
        events: list[Event] = []
        while True:
            seen = len(events)
            try:
                for message in self._stream(events[-1].sequence if events else 0, _HISTORY_SECONDS, until_now=True):
                    event = records.event(message)
                    if event:
                        events.append(event)
                return events
            except grpc.RpcError as error:
                if code_of(error) is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise self._connection.translated(error) from error
            # A server of an earlier release continues with new events. Those come a few times a second, recorded ones
            # before by thousands.
            if len(events) - seen < _BACKLOG:
                return events
