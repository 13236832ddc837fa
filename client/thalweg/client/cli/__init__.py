"""The command line. `main` is the `thalweg` command."""

from thalweg.client.cli.app import main

__all__ = ["main"]
