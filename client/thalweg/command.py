"""The `thalweg` command. Its process is prepared here, before anything imports gRPC."""

from thalweg.contract.process import prepare


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line, and ends the process with its exit code."""
    prepare()
    from thalweg.client.cli.app import main as run  # noqa: PLC0415 - it imports gRPC

    run(arguments)
