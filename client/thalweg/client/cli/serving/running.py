"""What commands that run until they are stopped share: how they say that they run, and how they wait."""

import logging
import signal

from thalweg.client.cli.output import console, print_json
from thalweg.client.cli.serving.log_options import Log
from thalweg.client.cli.signals import Inbox, InterruptedBySignalError
from thalweg.contract.endpoint import Address, parse_address
from thalweg.contract.errors import Violation, invalid

_log = logging.getLogger(__name__)


def address_of(option: str, text: str) -> Address:
    """The address that an option gives. Raises ThalwegError."""
    try:
        return parse_address(text)
    except ValueError as error:
        raise invalid(Violation(option, str(error))) from error


def address_with_port(option: str, text: str, port: int) -> Address:
    """The same where the default port makes no sense. `port` is an example of one that does. Raises ThalwegError."""
    if ":" not in text:
        raise invalid(Violation(option, f"{text!r} has no port; write HOST:PORT, as in 127.0.0.1:{port}"))
    return address_of(option, text)


def reached(server: Address) -> Address:
    """Where this machine reaches a server that listens at an address."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared
    return server._replace(host=loopback.get(server.host, server.host))


def announce(facts: dict[str, str], words: str, json: bool) -> None:
    """Says that the command runs: facts for programs, words for people."""
    if json:
        print_json(facts)
    else:
        console().print(f"{words}; Ctrl-C stops it", markup=False, soft_wrap=True)


def wait(inbox: Inbox, log: Log | None = None) -> None:
    """Waits for a signal that ends these commands, or an item. SIGHUP ends none; the file of a log is opened again."""
    while True:
        try:
            inbox.get()
            return
        except InterruptedBySignalError as signalled:
            if signalled.number != signal.SIGHUP:
                return
            if not (log and log.reopen()):
                _log.info("SIGHUP is ignored; SIGTERM stops the process")
