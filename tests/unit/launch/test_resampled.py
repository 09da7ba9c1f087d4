"""Arms of a study compared on each client's rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import rayfed
from rayfed import partition
from rayfed.config.schema import Config
from rayfed.launch import resampled
from tests.configs import refusal

STUDY = {
    "name": "sites", "rounds": 1, "seeds": [3],
    "task": {"data": {"name": "synthetic:multilabel", "examples": 90, "features": 4, "labels": 2, "test": 20}, "model": "linear"},
    "federation": {"clients": 2, "partition": {"kind": "iid"}, "split": {"test": 0.5}},
    "local": {"steps": 2, "batch_size": 8}, "resources": {"executor": "loop"}, "track": [],
    "method": "fedavg",
    "arms": {"alone": {"method": "local_only"}, "together": {}},
}  # fmt: skip


def test_each_client_and_label_has_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayfed.report.write_report", lambda *a, **k: None)
    done = rayfed.run(STUDY, local=True, out=tmp_path, progress=False)
    assert isinstance(done, rayfed.Study)
    head, *body = resampled.lines(done.path)
    assert head == list(resampled.HEAD) and [line[:3] for line in body] == [
        [c, label, "together"] for c in ("0", "1") for label in ("label 0", "label 1")
    ]
    run = done.arms["together"][3]
    f = partition.build(Config.from_dict(run.config))
    rows = f.test[0]
    answers = np.asarray(run.model()(f.arrays["x"][rows]))
    assert body[0][3] == f"{roc_auc_score(f.arrays['y'][rows][:, 0], answers[:, 0]):.4f}" and body[0][-1] == str(
        len(rows)
    )
    assert "together" in resampled.markdown(done.path)
    single = done.arms["alone"][3].path
    assert "no seed that is done in two of them" in refusal(resampled.lines, single)
