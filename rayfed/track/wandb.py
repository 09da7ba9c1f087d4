"""Weights & Biases. WANDB_MODE (offline), WANDB_PROJECT (default `rayfed`), WANDB_ENTITY and the rest of its variables hold.

The W&B run has the id of the rayfed run, which stays in the run folder; a resumed run continues it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayfed.track import Row


class WandB:
    def open(self, run: str, config: Mapping[str, Any], folder: Path) -> dict[str, str]:
        """Its files go to the run folder's `wandb/`, unless WANDB_DIR names another place."""
        import wandb

        self.run = wandb.init(
            id=run, name=run, resume="allow", config=dict(config), group=str(config["name"]),
            project=os.environ.get("WANDB_PROJECT") or "rayfed", dir=os.environ.get("WANDB_DIR") or folder.resolve(),
            reinit="create_new",  # a run of the user's own, in the same process, is not ours to write to
            settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        url = {"url": self.run.url} if self.run.url else {}
        return {"id": self.run.id, **url, "folder": str(self.run.dir)}

    def row(self, round: int, metrics: Row) -> None:
        """One step; W&B keeps the first row of a step, and rounds that a resumed run repeats have the same numbers."""
        self.run.log({k: v for k, v in metrics.items() if k != "round" and v is not None}, step=round)

    def close(self, status: str) -> None:
        """A run that failed is marked so; what is still to be sent is waited for."""
        self.run.summary["status"] = status
        self.run.finish(exit_code=1 if status == "failed" else 0)
