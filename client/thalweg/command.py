"""The `thalweg` command. Its process is prepared here, before anything imports gRPC."""

import os
import signal


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line, and ends the process with its exit code."""
    # As under nohup or in the background of a script.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if not ignored:
        # Imports take a moment, and Ctrl-C would show where they are.
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    from thalweg.contract.process import prepare  # noqa: PLC0415 - so that Ctrl-C is quiet meanwhile

    prepare()
    from thalweg.client.cli.app import main as run  # noqa: PLC0415 - it imports gRPC

    try:
        if not ignored:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run(arguments)
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)
    finally:
        if not ignored:
            # All is done, and the interpreter ends.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
