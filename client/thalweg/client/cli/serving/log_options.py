"""The log of a command that runs until it is stopped: its options, where it goes, and its reopening."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from thalweg.client.cli.options import user_path
from thalweg.contract.errors import Violation, invalid
from thalweg.contract.logs import JsonFormatter, LogFile, Sparingly
from thalweg.contract.text import VisibleFormatter

_log = logging.getLogger(__name__)


class LogFormat(StrEnum):
    """How lines are written."""

    TEXT = "text"
    JSON = "json"


LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        "--log-format",
        envvar="THALWEG_LOG_FORMAT",
        help="How log lines are written; json: one object a line, with job, worker and request as fields.",
    ),
]
LogFileOption = Annotated[
    Path | None,
    typer.Option(
        "--log-file",
        parser=user_path,
        metavar="FILE",
        help="The file to which log lines are appended; it is opened again at SIGHUP.",
        show_default="stderr",
    ),
]


class Log:
    """The log of this process. Raises ThalwegError if its file cannot be opened."""

    def __init__(self, format_: LogFormat, file: Path | None) -> None:
        handler: logging.Handler = logging.StreamHandler()
        self._file: LogFile | None = None
        if file:
            try:
                handler = self._file = LogFile(file.absolute())
            except OSError as error:
                raise invalid(Violation("--log-file", f"cannot open {file}: {error.strerror}")) from error
        text = VisibleFormatter("%(asctime)s %(levelname)s %(message)s")
        handler.setFormatter(JsonFormatter() if format_ is LogFormat.JSON else text)
        handler.addFilter(Sparingly("grpc"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])

    def reopen(self) -> bool:
        """Opens the file again, which was perhaps moved away. False if the log is not in a file."""
        if self._file is None:
            return False
        try:
            self._file.reopen()
        except OSError as error:
            _log.warning("SIGHUP: cannot open %s: %s; the log continues where it was", self._file.path, error.strerror)
        else:
            _log.info("SIGHUP: the log continues in %s", self._file.path)
        return True
