"""Options that several commands share, and what a shell completes."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Annotated

import typer


def complete_config(incomplete: str) -> list[str]:
    """Return the ready configs, YAML files and folders that begin so."""
    from rayfed.config.load import ready

    there = [p for p in glob.glob(f"{glob.escape(incomplete)}*") if Path(p).is_dir() or p.endswith((".yaml", ".yml"))]
    return [n for n in ready() if n.startswith(incomplete)] + [
        f"{p}/" if Path(p).is_dir() else p for p in sorted(there)
    ]


def complete_key(incomplete: str) -> list[str]:
    """Return the keys of a config that begin so."""
    from rayfed.launch.explain import keys

    return [key for key in keys() if key.startswith(incomplete)]


def complete_set(incomplete: str) -> list[str]:
    """Return the keys of a config that begin so, ready for a value."""
    return [] if "=" in incomplete else [f"{key}=" for key in complete_key(incomplete)]


def complete_method(incomplete: str) -> list[str]:
    """Return the methods whose names begin so."""
    from rayfed.methods import names

    return [n for n in names() if n.startswith(incomplete)]


ConfigName = Annotated[
    str, typer.Argument(help="A file, or the name of a ready config.", autocompletion=complete_config)
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override a setting; may be repeated.", autocompletion=complete_set),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
AcceptChanges = Annotated[
    bool,
    typer.Option("--accept-changes", help="Go on though settings, data or code are not those that it was made from."),
]
Local = Annotated[bool, typer.Option("--local", help="In this process, without Ray.")]
Address = Annotated[str | None, typer.Option("--address", help="local | auto | ADDRESS of a Ray cluster.")]
ScaleUp = Annotated[
    float,
    typer.Option("--scale-up", metavar="SECONDS", help="Ask the cluster's autoscaler for what is missing, and wait."),
]

# of commands that talk to a cluster's dashboard
Dashboard = Annotated[
    str | None, typer.Option("--address", help="The head's dashboard, http://HEAD:8265; default: RAY_ADDRESS.")
]
Job = Annotated[str, typer.Argument(help="A job's name, as `rayfed status` lists it.")]
Shared = Annotated[
    list[Path] | None,
    typer.Option("--shared", metavar="DIR", help="Every node sees DIR under this path: nothing in it travels."),
]
StoredIn = Annotated[
    str | None, typer.Option("--out", help="Folder on the head, or object storage (overrides storage.path).")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not follow: print the job's name.")]
