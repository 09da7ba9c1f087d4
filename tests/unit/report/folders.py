"""Folders of runs, studies and sweeps with made-up rows, and pages read back."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import yaml
from matplotlib.figure import Figure

from rayfed.report import write_report
from rayfed.storage.new_folder import new_folder
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder
from rayfed.storage.text_files import json_bytes, yaml_bytes
from tests import toy

ME = Owner.me()
CONFIG = {
    "name": "toy",
    "seed": 3,
    "rounds": 20,
    "task": {"data": {"name": "digits"}, "model": {"name": "mlp"}},
    "federation": {"clients": 40},
    "method": {"name": "fedavg"},
    "resources": {"executor": "loop"},
    "storage": {"path": "runs", "snapshot_every": 5, "keep": 2},
}


def make_run(folder: RunFolder, rounds: int, speed: float, seed: int, finish: bool = True) -> Path:
    rng = np.random.default_rng(seed)
    for r in range(1, rounds + 1):
        row = {"bytes/up": 1_200_000 + r, "bytes/down": 2.4e6, "ray/bytes": 9e6, "time/round": 0.4 + 0.1 * rng.random()}
        clients = None
        if r % 5 == 0:
            accuracy = 0.95 - 0.75 * math.exp(-speed * r / 10) + 0.01 * rng.standard_normal()
            for i, s in enumerate(("global", "personal", "cluster", "local", "unseen")):
                row |= {f"accuracy/{s}": accuracy + 0.02 * (i - 2), f"accuracy/{s}_ex": accuracy}
                row |= {f"loss/{s}": 2.3 * math.exp(-speed * r / 12) + 0.05 * i, f"loss/{s}_ex": 1.0}
            row |= {"clusters/ari": min(1.0, speed * r / 12), "clusters/count": 3, "method/own": 0.5}
            spread = np.clip(rng.normal(accuracy, 0.08, 40), 0, 1)
            clients = [
                {
                    "client": c,
                    "group": c % 3,
                    "unseen": c >= 36,
                    "accuracy": a if c else None,
                    "loss": 1 - a,
                    "seconds": None,
                }
                for c, a in enumerate(spread.tolist())
            ]
        folder.commit(r, row, clients, None)
    folder.state(status="running", round=rounds, rounds=rounds)
    if finish:
        folder.finish("done", {"wall_s": 12.5, "notes": ["a <note>"]})
    return folder.path


def make_study(tmp_path, seeds=(0, 1, 2), claim=None, unfinished=0):
    arms = {"fedavg": 0.6, "ifca": 0.9, "disue": 1.3}
    study = {**CONFIG, "name": "compare", "seeds": list(seeds), "arms": {a: {"method": {"name": a}} for a in arms}}
    study["claim"] = claim
    path = new_folder(tmp_path, "compare", {"study.yaml": yaml_bytes(study)})
    total = len(seeds) * len(arms)
    for seed in seeds:
        for arm, speed in arms.items():
            total -= 1
            config = {**CONFIG, "method": {"name": arm}, "seed": seed}
            folder = RunFolder.create(path / arm / f"seed-{seed}", config, owner=ME, exact=True)
            make_run(folder, 20, speed, 10 * seed + len(arm), finish=total >= unfinished)
    return path


def make_short_run(folder, values, finish=True):
    for r, value in enumerate(values, 1):
        row = {"accuracy/global": value, "loss/global": 1 - value, "bytes/up": 1e6 * len(values), "bytes/down": 1e6}
        folder.commit(r, row)
    if finish:
        folder.finish("done", {"wall_s": 2.0, "notes": ["to repeat: --set resources.cohort=7"]})
    return folder.path


def make_sweep(where: Path, scheduler: str = "none") -> Path:
    """A sweep's folder with 3 x 2 trials of two seeds; the last trial was stopped."""
    about = {
        "command": "rayfed sweep clusters,heterogeneity c.yaml", "spaces": ["clusters", "heterogeneity"], "sets": [], "name": "toy",
        "options": {"search": "grid", "scheduler": scheduler, "seeds": [0, 1], "metric": "accuracy/global"}, "mode": "max",
        "rounds": 4, "trials": 6, "swept": {"method.clusters": [2, 3, 5], "federation.partition.alpha": [0.1, 5.0]},
        "config": {**toy.TOY, "method": {"name": "ifca", "clusters": 3}}, "versions": {"python": "3"},
    }  # fmt: skip
    where.mkdir(parents=True)
    (where / "sweep.yaml").write_text(yaml.safe_dump(about, sort_keys=False))
    for i in range(6):
        k, alpha = (2, 3, 5)[i // 2], (0.1, 5.0)[i % 2]
        place = where / "trials" / f"{i:05d}"
        lines = []
        for r in (2, 4, 4)[: 1 if i == 5 else 3]:  # the last round was written twice: the trial was resumed
            value = i / 10 + r / 100 + (0.5 if len(lines) == 1 else 0)
            seeds = {s: {"accuracy/global": value + d, "loss/global": 1.0} for s, d in (("0", 0.0), ("1", 0.02))}
            lines.append(
                {
                    "trial": place.name,
                    "round": r,
                    "folder": f"trials/{place.name}",
                    "point": {"method.clusters": k, "federation.partition.alpha": alpha},
                    "seeds": seeds,
                }
            )
        for s in (0, 1):
            (place / f"seed-{s}").mkdir(parents=True)
            if i < 5:
                (place / f"seed-{s}" / "summary.json").write_text('{"status": "done"}')
        (place / "rows.jsonl").write_bytes(b"\n".join(json_bytes(x) for x in lines) + b'{"trial": "torn')
    return where


class Page(HTMLParser):
    """Well-formed enough for a browser, and what is in it."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.text, self.ids = [], [], "", []
        self.feed(text)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [v for k, v in attrs if k == "id"]
        for k, v in attrs:
            inside = v is not None and v.startswith(("#", "data:image/png;base64,"))
            assert k not in ("src", "onclick") and (k not in ("href", "xlink:href") or inside), (tag, k, v)
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data


def page_of(path):
    html = write_report(path)
    assert html == path / "report.html"
    text = html.read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    for reference in re.findall(r"url\(#([^)]+)\)", text) + re.findall(r'href="#([^"]+)"', text):
        assert reference in page.ids
    return page


def painted(panel):
    """Return an axis on which a picture's panel has been drawn."""
    axis = Figure().add_subplot()
    panel(axis)
    return axis
