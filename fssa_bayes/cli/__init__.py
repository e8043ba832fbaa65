"""The command `fssa-bayes`: one file a subcommand, imported when the subcommand is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Annotated

import typer
from typer.core import TyperGroup

__all__ = ["SUBCOMMANDS", "app", "main"]

SUBCOMMANDS = ("analyse", "rank", "diagnose", "score", "ask", "steer")
"""Names of the subcommands, each the name of a module of this package that holds `app`."""

# Raised of a wrong argument, a wrong file, a missing package or a fit that breaks down.
_EXPECTED = (ValueError, OSError, ImportError, FloatingPointError)


class Subcommands(TyperGroup):
    """Imports the module of a subcommand when the subcommand is asked for."""

    def list_commands(self, ctx: object) -> list[str]:
        """Lists the subcommands in the order in which people need them."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: object, cmd_name: str) -> object:
        """Returns a subcommand, or None if there is none of that name."""
        if cmd_name not in SUBCOMMANDS:
            return None
        module = import_module(f"fssa_bayes.cli.{cmd_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name  # A group has none of its own.
        return command


app = typer.Typer(
    cls=Subcommands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(wanted: bool) -> None:
    """Prints the version and ends the command."""
    if wanted:
        print(f"fssa-bayes {metadata.version('fssa_bayes')}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    debug: Annotated[  # Read by `main`, wherever it stands.
        bool, typer.Option("--debug", help="Show where in the code an error arose.")
    ] = False,
) -> None:
    """Who prefers what, how sure is that, and can it be believed?

    Subcommands read a file of paired comparisons and write what they find; `ask` asks people;
    `steer` trains a language model that follows each of them, and serves it.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and ends the process.

    An error that a user can mend is one message on standard error and exit code 2. `--debug`,
    before or after the subcommand, shows the traceback too.

    Args:
        arguments: The arguments after the name of the command; those of the process if None.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        app(args=arguments, prog_name="fssa-bayes")
    except BrokenPipeError:  # The reader of standard output, such as `head`, has ended.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except _EXPECTED as error:
        if debug:
            raise
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        sys.exit(2)
