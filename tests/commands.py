"""Commands as files of others start them, held to the command line as it is."""

from collections.abc import Sequence

import typer.main

from thalweg.client.cli.app import app


def check_command(words: Sequence[str]) -> None:
    """Fails if `thalweg` with these arguments names a command or an option that there is not, or leaves a value out."""
    group = typer.main.get_group(app)
    name, *arguments = words
    command = group.commands[name]
    # Parsed, and not run.
    with command.make_context(name, list(arguments), parent=None, resilient_parsing=False) as context:
        assert not context.args, context.args
