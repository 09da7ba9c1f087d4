"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigName = Annotated[str, typer.Argument(help="A file, or the name of a ready config.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a setting; may be repeated.")]
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
