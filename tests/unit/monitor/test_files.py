"""Files for Prometheus and Grafana, and what a real Prometheus makes of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from rayfed.errors import ConfigError
from rayfed.monitor import Server, write_files
from rayfed.monitor.files import dashboard, panels, selector
from rayfed.storage.run_folder import read_metrics
from rayfed.storage.text_files import read_yaml
from rayfed.track.prometheus import METRICS
from tests.ports import free_port
from tests.unit.monitor.runs import get, listed

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")


def test_files_for_prometheus_and_grafana(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "rt"))
    files = write_files(tmp_path / "out", 9999)
    config = read_yaml(files["prometheus"])
    ray, page = config["scrape_configs"]
    assert ray["file_sd_configs"][0]["files"] == [str(tmp_path / "rt" / "ray" / "prom_metrics_service_discovery.json")]
    assert page["static_configs"] == [{"targets": ["127.0.0.1:9999"]}]
    board = json.loads(files["dashboard"].read_text())
    assert board == dashboard() and board["uid"] == "rayfed"
    assert len({p["id"] for p in board["panels"]}) == len(board["panels"])
    exprs = [t["expr"] for p in board["panels"] for t in p["targets"]]
    for name in METRICS:
        assert [e for e in exprs if name in e], f"no panel has {name}"
    assert all(e.startswith(("max by (run", "sum by (run", "sum(", "histogram_quantile(")) for e in exprs)
    cells = [
        (x, y)
        for p in board["panels"]
        for g in [p["gridPos"]]
        for x in range(g["x"], g["x"] + g["w"])
        for y in range(g["y"], g["y"] + g["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24, "panels overlap"
    provider = read_yaml(files["provider"])["providers"][0]
    assert Path(provider["options"]["path"]) == files["dashboard"].parent


def test_out_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--out .*file"):
        write_files(tmp_path / "file")


@pytest.mark.skipif(not (PROMETHEUS and PROMTOOL), reason="Prometheus is not installed (apt-get install prometheus)")
def test_prometheus_scrapes_the_page(server: Server, runs: Path, tmp_path: Path) -> None:
    """The config that `--out` writes, a real Prometheus, and every expression of the dashboard."""
    assert PROMETHEUS and PROMTOOL
    os.utime(runs / listed(runs)["done"]["id"] / "state.json")
    port = server.http.server_address[1]
    config = write_files(tmp_path, port)["prometheus"]
    config.write_text(config.read_text().replace("scrape_interval: 10s", "scrape_interval: 1s"))
    subprocess.run([PROMTOOL, "check", "config", config], check=True, capture_output=True)
    text = get(server, "/metrics")[1]
    checked = subprocess.run([PROMTOOL, "check", "metrics"], input=text, text=True, capture_output=True)
    assert checked.returncode == 0 and not checked.stderr, checked.stderr
    own = free_port()
    command = [
        PROMETHEUS,
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path}/db",
        f"--web.listen-address=127.0.0.1:{own}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        results = {}
        for title, _, targets in panels():
            for expr, _ in targets:
                for variable, value in {
                    "$run": ".*",
                    "$method": "ifca",
                    "$__rate_interval": "10s",
                    "$__range": "1m",
                }.items():
                    expr = expr.replace(variable, value)
                results[title] = ask(own, expr, title == "Running")
    finally:
        process.terminate()
        process.wait(timeout=20)
    rows = read_metrics(runs / listed(runs)["done"]["id"]).to_pylist()
    assert [r["value"][1] for r in results["Round"]] == ["4"]
    values = {r["metric"]["scope"]: float(r["value"][1]) for r in results["Accuracy"]}
    assert values["personal"] == rows[-1]["accuracy/personal"]


def ask(port: int, expr: str, wait: bool) -> list[dict[str, Any]]:
    """A query's result; with `wait`, once it has one."""
    url, end = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expr})}", time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                found = json.load(answer)
            assert found["status"] == "success", found
            if found["data"]["result"] or not wait:
                return found["data"]["result"]
        except urllib.error.HTTPError as error:
            if error.code != 503:  # 503: not ready yet
                raise AssertionError(f"{expr}: {error.read().decode()}") from None
        except OSError:
            pass
        assert time.monotonic() < end, f"no result: {expr}"
        time.sleep(0.2)


def test_a_selector_takes_both_names() -> None:
    assert re.search('__name__=~"([^"]*)"', selector("rayfed_round")).group(1) == "(ray_)?rayfed_round"  # type: ignore[union-attr]
