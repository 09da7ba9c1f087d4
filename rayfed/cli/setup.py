"""Commands around experiments: init, doctor, clean and config explain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rayfed.cli.options import Address, Json, complete_key
from rayfed.errors import PlacementError, RunFailed

config = typer.Typer(no_args_is_help=True, help="What the keys of a config mean.")


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder, or one without these files.")],
) -> None:
    """Start a project: a config, data, a model and a method that run as they are, to be filled with yours."""
    from rayfed.launch.new_project import write_project

    for file in write_project(folder):
        typer.echo(str(file))
    typer.echo(f"\ncd {folder}\nrayfed run config.yaml")


def doctor(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of run folders.")] = Path("runs"),
    ray: Annotated[
        bool, typer.Option("--ray/--no-ray", help="Start a local Ray, or join --address, and compute on it.")
    ] = True,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Look at libraries, GPUs, ports, disks and Ray; exit 3 where rayfed cannot work."""
    from rayfed.launch.doctor import check_machine

    found = check_machine(folder)
    if ray:
        from actors.health import check_ray

        found += check_ray(address)
    if as_json:
        typer.echo(json.dumps([check._asdict() for check in found], indent=1))
    else:
        for check in found:
            typer.echo(f"{check.status:6} {check.what:11} {check.found}")
    if any(check.status == "wrong" for check in found):
        raise typer.Exit(PlacementError.exit_code)


def clean(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of run folders.")] = Path("runs"),
    cache: Annotated[
        bool, typer.Option("--cache", help="Also the cache: compiled steps, tokens; made again when they are needed.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete what is listed.")] = False,
    as_json: Json = False,
) -> None:
    """List what nobody needs any more (runs without a round, leftovers of killed processes); --yes deletes it."""
    from rayfed.launch.progress import human
    from rayfed.storage.leftovers import delete, find_leftovers

    found = find_leftovers(folder, cache)
    left = delete(found) if yes else []
    if as_json:
        rows = [
            {"path": str(f.path), "what": f.what, "bytes": f.bytes, "deleted": yes and f not in left} for f in found
        ]
        typer.echo(json.dumps(rows, indent=1))
    else:
        for f in found:
            typer.echo(f"{human(f.bytes):>9}  {f.path}  {f.what}")
        total = human(sum(f.bytes for f in found))
        if not found:
            typer.echo(f"nothing to delete in {folder}" + ("" if cache else "; --cache looks into the cache, too"))
        else:
            typer.echo(f"{total:>9}  {'deleted' if yes else 'in all; --yes deletes it'}")
    if left:
        raise RunFailed("\n".join(f"clean: {f.path} could not be deleted" for f in left))


@config.command("explain")
def explain(
    key: Annotated[
        str,
        typer.Argument(
            help="A key, local.optimizer.lr, or its last part; default: all sections.", autocompletion=complete_key
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Say what a key takes, its default, and what it does; also settings of methods: method.clusters."""
    from rayfed.launch import explain as launched

    found = launched.explain(key)
    typer.echo(json.dumps([m._asdict() for m in found], indent=1) if as_json else launched.text(found))
