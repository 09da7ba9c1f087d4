"""Pictures of a sweep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from rayfed.report.sweep_pictures import SettingAxis, pictures
from rayfed.storage.sweep_folder import Sweep, Trial, load_sweep, read_rows
from rayfed.storage.text_files import json_bytes
from tests.unit.report.folders import make_sweep


def test_heat_map_cells(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    path = make_sweep(tmp_path / "s")
    (heat,), _, _ = pictures(load_sweep(path))
    axis = Figure().add_subplot()
    heat.panels[0](axis)
    shown = np.ma.filled(axis.images[0].get_array(), np.nan)
    assert shown == pytest.approx(np.array([[0.05, 0.25, 0.45], [0.15, 0.35, 0.53]]))  # 00005 stopped after round 2
    assert [t.get_text() for t in axis.get_xticklabels()] == ["2", "3", "5"] and axis.get_ylabel() == "alpha"
    assert {t.get_text() for t in axis.texts} == {"0.050", "0.250", "0.450", "0.150", "0.350", "0.530*"}
    about = yaml.safe_load((path / "sweep.yaml").read_text())
    with_both = {"method.clusters": [2, 3, 5], "federation.partition.alpha": [0.1, 5.0], "local.epochs": [1, 2]}
    (path / "sweep.yaml").write_text(yaml.safe_dump({**about, "swept": with_both}))
    for i in range(6):
        rows = path / "trials" / f"{i:05d}" / "rows.jsonl"
        found = read_rows(rows.parent)
        rows.write_bytes(
            b"\n".join(json_bytes({**r, "point": {**r["point"], "local.epochs": 1 + i // 3}}) for r in found)
        )
    maps, _, _ = pictures(load_sweep(path))
    spans, seen = set(), []
    for heat in maps:
        axis = Figure().add_subplot()
        heat.panels[0](axis)
        spans.add(axis.images[0].get_clim())
        seen += [float(t.get_text().strip("*")) for t in axis.texts]
    assert len(maps) == 3 and len(spans) == 1, "one scale for all maps"
    assert spans.pop() == pytest.approx((min(seen), max(seen)))


def test_many_numbers_become_ranges(tmp_path: Path) -> None:
    trial = [Trial(str(i), {1: {"point": {"lr": 0.01 * (i + 1)}, "seeds": {}}}, True) for i in range(20)]
    axis = SettingAxis(Sweep(tmp_path, {"swept": {"lr": "float"}}, trial), "lr")
    at = [axis.place(t.point["lr"]) for t in trial]
    assert at == sorted(at) and set(at) == set(range(len(axis.labels))) and len(axis.labels) == 5
