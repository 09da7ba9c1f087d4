"""Weights & Biases, configured by its own variables: WANDB_MODE (offline), WANDB_PROJECT (default `rayfed`), WANDB_ENTITY ...

The W&B run has the id of the rayfed run, so that a resumed run continues it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayfed.track import Row


class WandB:
    """Logs a run to Weights & Biases."""

    def open(self, run: str, config: Mapping[str, Any], folder: Path) -> dict[str, str]:
        """Start or continue the W&B run; its files go to the run folder's `wandb/`, or to WANDB_DIR."""
        import wandb

        self.run = wandb.init(
            id=run, name=run, resume="allow", config=dict(config), group=str(config["name"]),
            project=os.environ.get("WANDB_PROJECT") or "rayfed", dir=os.environ.get("WANDB_DIR") or folder.resolve(),
            reinit="create_new",  # do not write to a run that the user has started in the same process
            settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        url = {"url": self.run.url} if self.run.url else {}
        return {"id": self.run.id, **url, "folder": str(self.run.dir)}

    def row(self, round: int, metrics: Row) -> None:
        """Log one step. W&B keeps the first row of a step; rounds that a resumed run repeats have the same numbers."""
        self.run.log({k: v for k, v in metrics.items() if k != "round" and v is not None}, step=round)

    def close(self, status: str) -> None:
        """Set the status, mark a failed run as failed, and wait until everything has been sent."""
        self.run.summary["status"] = status
        self.run.finish(exit_code=1 if status == "failed" else 0)
