"""The command line: one function per command, which parses, calls and prints. `main` turns errors into exit codes."""

from __future__ import annotations

import io
import os
import sys
from contextlib import nullcontext
from typing import Annotated

import typer

from rayfed import __version__
from rayfed.cli import catalogue, cluster, experiments, results, setup
from rayfed.cli.output import keep_writable
from rayfed.config.own_errors import OwnCodeExit, contained
from rayfed.errors import RayfedError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated-learning experiments on Ray.",
)
for _command in (  # in the order of `rayfed --help`
    setup.init,
    experiments.run,
    experiments.resume,
    experiments.reproduce,
    catalogue.validate,
    catalogue.ask,
    catalogue.partition,
    catalogue.cp,
    catalogue.methods,
    catalogue.systems,
    catalogue.tasks,
    results.runs,
    results.report,
    results.export,
    results.audit,
    experiments.claims,
    experiments.sweep,
    results.monitor,
    cluster.status,
    cluster.logs,
    cluster.stop,
    cluster.fetch,
    setup.doctor,
    setup.clean,
):
    app.command()(_command)
app.add_typer(cluster.submit, name="submit")
app.add_typer(setup.config, name="config")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"rayfed {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Federated-learning experiments on Ray."""


def main() -> None:
    """Run the command of `sys.argv` and exit with a code of the README; errors that a user can act on are printed without traceback."""
    work = sys.argv[1:2] in (["run"], ["resume"], ["sweep"], ["claims"])
    keep_writable(_say_lost if work else lambda text: None)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show ends no command
            stream.reconfigure(errors="backslashreplace")
    try:
        with contained() if _may_run_own_code() else nullcontext():
            code = app(standalone_mode=False) or 0
        sys.exit(code)
    except RayfedError as e:
        typer.echo(f"rayfed: {e}" if "\n" not in str(e) else f"rayfed:\n{e}", err=True)
        sys.exit(e.exit_code)
    except typer.Exit as e:
        sys.exit(e.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except OwnCodeExit as e:
        typer.echo(f"rayfed: own code ended the command: {e}", err=True)
        sys.exit(4)
    except Exception as e:
        if not hasattr(e, "format_message"):  # anything but a wrong command line
            raise
        typer.echo(f"rayfed: {e.format_message()}\nSee: rayfed --help", err=True)
        sys.exit(2)


def _may_run_own_code() -> bool:
    """Return whether this is a command: what a shell asks for completion, and options before any command, end by `sys.exit`."""
    return "_RAYFED_COMPLETE" not in os.environ and not "".join(sys.argv[1:2]).startswith("-")


def _say_lost(reason: str) -> None:
    typer.echo(f"rayfed: standard output cannot be written to ({reason}); the work goes on without it", err=True)
