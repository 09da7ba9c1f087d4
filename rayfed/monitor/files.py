"""Files for Prometheus and Grafana: a scrape config, and a dashboard of every metric of `rayfed.track.prometheus`."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayfed.errors import ConfigError
from rayfed.monitor.serve import PORT
from rayfed.storage.atomic import durable_write, os_error_text
from rayfed.track.prometheus import METRICS

UID = "rayfed"
LATEST = "1m"  # how long a value counts as the current one
SCRAPE = 10  # seconds; Ray's workers send as often


def discovery() -> Path:
    """Return the file in which a Ray head on this machine lists its metrics ports; it need not exist yet."""
    base = os.environ.get("RAY_TMPDIR") or ("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir())
    return Path(base).resolve() / "ray" / "prom_metrics_service_discovery.json"


def write_files(out: Path, port: int = PORT) -> dict[str, Path]:
    """Write `prometheus.yml`, `grafana/...` (data source, provider, dashboard) into a folder; returns their paths by name.

    ConfigError if they cannot be written.
    """
    grafana = out / "grafana"
    content = {
        "prometheus": (out / "prometheus.yml", prometheus_yml(port)),
        "dashboard": (grafana / "dashboards" / "rayfed.json", json.dumps(dashboard(), indent=1) + "\n"),
        "datasource": (grafana / "provisioning" / "datasources" / "rayfed.yml", _datasource()),
        "provider": (grafana / "provisioning" / "dashboards" / "rayfed.yml", _provider(grafana / "dashboards")),
    }
    try:
        for path, text in content.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            durable_write(path, text.encode())
    except OSError as error:
        raise ConfigError(f"monitor: --out {out}: cannot write there: {os_error_text(error, out)}") from error
    return {name: path for name, (path, _) in content.items()}


def start_commands(files: Mapping[str, Path]) -> str:
    """Return the commands that start Prometheus and Grafana with the files of `write_files`."""
    out = files["prometheus"].parent.resolve()
    data, config = shlex.quote(str(out / "data")), shlex.quote(str(out / "prometheus.yml"))
    paths = f"GF_PATHS_PROVISIONING={shlex.quote(str(out / 'grafana' / 'provisioning'))}"
    lines = [
        "Runs with `track: [prometheus]` are shown. Prometheus (Debian, Ubuntu: apt-get install prometheus):",
        f"  prometheus --config.file={config} --storage.tsdb.path={data} --web.listen-address=127.0.0.1:9090",
        "Grafana, with the dashboard `rayfed` and its data source:",
        f"  {paths} GF_SECURITY_ALLOW_EMBEDDING=true GF_AUTH_ANONYMOUS_ENABLED=true \\",
        "    grafana server --homepath /usr/share/grafana",
        f"or import {files['dashboard'].resolve()} into a running Grafana.",
        "Ray's dashboard shows its Metrics page if its head was started with",
        "  RAY_PROMETHEUS_HOST=http://127.0.0.1:9090 RAY_GRAFANA_HOST=http://127.0.0.1:3000 ray start --head",
    ]
    return "\n".join(lines)


def prometheus_yml(port: int = PORT) -> str:
    """Return Prometheus' config: Ray's ports as its head lists them, and the page of `rayfed monitor --serve`."""
    import yaml

    jobs: list[dict[str, Any]] = [
        {"job_name": "ray", "file_sd_configs": [{"files": [str(discovery())], "refresh_interval": "15s"}]},
        {"job_name": "rayfed", "static_configs": [{"targets": [f"127.0.0.1:{port or PORT}"]}]},
    ]
    text = {"global": {"scrape_interval": f"{SCRAPE}s"}, "scrape_configs": jobs}
    about = "# ray: kept up to date by the head. rayfed: `rayfed monitor --serve`, for runs without Ray.\n"
    return about + yaml.safe_dump(text, sort_keys=False)


def _datasource() -> str:
    import yaml

    source = {"name": "Prometheus", "uid": UID, "type": "prometheus", "access": "proxy", "url": "http://127.0.0.1:9090"}
    return yaml.safe_dump({"apiVersion": 1, "datasources": [{**source, "isDefault": True}]}, sort_keys=False)


def _provider(folder: Path) -> str:
    import yaml

    options = {"path": str(folder.resolve())}
    return yaml.safe_dump({"apiVersion": 1, "providers": [{"name": "rayfed", "type": "file", "options": options}]})


# -- the dashboard -----------------------------------------------------------------------------------------------------


def selector(name: str) -> str:
    """Return a PromQL selector of a metric of the chosen runs, as exported by Ray (with its prefix) or by rayfed itself."""
    return f'{{__name__=~"(ray_)?{name}",run=~"$run",method=~"$method"}}'


def _latest(name: str, by: str) -> str:
    return f"max by ({by}) (last_over_time({selector(name)}[{LATEST}]))"


def _rate(name: str, by: str) -> str:
    return f"sum by ({by}) (rate({selector(name)}[$__rate_interval]))"


def panels() -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Return (title, unit, [(expression, legend)]) of each panel; series of replaced actors and servers are aggregated."""
    run, name = "run, trial, method", "{{run}} {{trial}}"
    runs = f"sum(last_over_time({selector('rayfed_running')}[{LATEST}]))"
    progress = f"{_latest('rayfed_round', run)} / {_latest('rayfed_rounds', run)}"
    buckets = _rate("rayfed_round_seconds_bucket", "le, run, trial")
    quantiles = [
        (f"histogram_quantile({q}, {buckets})", f"{name} {label}") for q, label in ((0.5, "median"), (0.95, "95 %"))
    ]
    scores = _latest("rayfed_score", f"{run}, name, scope")
    traffic = _rate("rayfed_bytes_total", "run, trial, direction")
    replaced = f"sum by (run, trial) (increase({selector('rayfed_actor_restarts_total')}[$__range]))"
    memory = _latest("rayfed_memory_bytes", "run, trial, part")
    return [
        ("Running", "short", [(runs, "runs")]),
        ("Progress", "percentunit", [(progress, f"{{{{method}}}} {name}")]),
        ("Round", "short", [(_latest("rayfed_round", run), f"{{{{method}}}} {name}")]),
        ("Accuracy", "percentunit", [(_latest("rayfed_accuracy", f"{run}, scope"), f"{name} {{{{scope}}}}")]),
        ("Loss", "short", [(_latest("rayfed_loss", f"{run}, scope"), f"{name} {{{{scope}}}}")]),
        ("Other scores", "short", [(scores, f"{name} {{{{name}}}} {{{{scope}}}}")]),
        ("Clients per second", "short", [(_latest("rayfed_clients_per_second", run), name)]),
        ("Seconds per round", "s", quantiles),
        ("Bytes per second", "Bps", [(traffic, f"{name} {{{{direction}}}}")]),
        ("Calls waiting or under way", "short", [(_latest("rayfed_queue_depth", run), name)]),
        ("Actors replaced", "short", [(replaced, name)]),
        ("Memory", "bytes", [(memory, f"{name} {{{{part}}}}")]),
    ]


def dashboard() -> dict[str, Any]:
    """Return Grafana's JSON of the dashboard: every metric, filtered by run and method."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    variables = [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}},
        *(_variable(name, source) for name in ("method", "run")),
    ]
    return {
        "uid": UID,
        "title": "rayfed",
        "description": "; ".join(f"{name}: {m.text}" for name, m in METRICS.items()),
        "tags": ["rayfed", "ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "timezone": "browser",
        "refresh": f"{SCRAPE}s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": variables},
        "annotations": {"list": []},
        "panels": [_panel(i, *panel, source) for i, panel in enumerate(panels())],
    }


def _panel(i: int, title: str, unit: str, targets: list[tuple[str, str]], source: dict[str, str]) -> dict[str, Any]:
    """Return panel `i`: the first two, a number and bars, share the top row; the others are curves, two in a row."""
    if i < 2:
        x, y, width, height = ((0, 0, 4, 6), (4, 0, 20, 6))[i]
    else:
        x, y, width, height = 12 * (i % 2), 6 + 8 * ((i - 2) // 2), 12, 8
    defaults = {"unit": unit, "min": 0, **({"max": 1} if i == 1 else {})}
    return {
        "id": i + 1,
        "title": title,
        "type": "stat" if i == 0 else "bargauge" if i == 1 else "timeseries",
        "datasource": source,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(i),
        "targets": [
            {"refId": chr(65 + k), "datasource": source, "expr": expr, "legendFormat": legend, "instant": i < 2}
            for k, (expr, legend) in enumerate(targets)
        ],
    }


def _options(i: int) -> dict[str, Any]:
    if i == 0:
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "none"}
    if i == 1:
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal", "displayMode": "basic"}
    return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}


def _variable(name: str, source: dict[str, str]) -> dict[str, Any]:
    query = f'label_values({{__name__=~"(ray_)?rayfed_round"}}, {name})'
    return {
        "name": name, "type": "query", "datasource": source, "query": {"query": query, "refId": name},
        "refresh": 2, "multi": True, "includeAll": True, "allValue": ".*", "sort": 2,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }  # fmt: skip
