"""Files for Prometheus and Grafana: what to scrape, and a dashboard of every metric of `rayfed.track.prometheus`."""

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
from rayfed.storage.atomic import durable_write, why
from rayfed.track.prometheus import METRICS

UID = "rayfed"
LATEST = "1m"  # a value counts as the present one for as long
SCRAPE = 10  # seconds: how often Ray's workers send


def discovery() -> Path:
    """The file in which a Ray head on this machine lists its metrics ports, whether it runs already or not."""
    base = os.environ.get("RAY_TMPDIR") or ("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir())
    return Path(base).resolve() / "ray" / "prom_metrics_service_discovery.json"


def write_files(out: Path, port: int = PORT) -> dict[str, Path]:
    """Write `prometheus.yml`, `grafana/...` (data source, provider, dashboard) into a folder. ConfigError if it refuses."""
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
        raise ConfigError(f"monitor: --out {out}: cannot write there: {why(error, out)}") from error
    return {name: path for name, (path, _) in content.items()}


def start_commands(files: Mapping[str, Path]) -> str:
    """The commands for what `write_files` wrote."""
    out = files["prometheus"].parent.resolve()
    data, config = shlex.quote(str(out / "data")), shlex.quote(str(out / "prometheus.yml"))
    paths = f"GF_PATHS_PROVISIONING={shlex.quote(str(out / 'grafana' / 'provisioning'))}"
    lines = [
        "Runs with `track: [prometheus]` are seen. Prometheus (Debian, Ubuntu: apt-get install prometheus):",
        f"  prometheus --config.file={config} --storage.tsdb.path={data} --web.listen-address=127.0.0.1:9090",
        "Grafana, with the dashboard `rayfed` and its data source:",
        f"  {paths} GF_SECURITY_ALLOW_EMBEDDING=true GF_AUTH_ANONYMOUS_ENABLED=true \\",
        "    grafana server --homepath /usr/share/grafana",
        f"or import {files['dashboard'].resolve()} into a Grafana that runs already.",
        "Ray's dashboard shows its Metrics page if its head was started with",
        "  RAY_PROMETHEUS_HOST=http://127.0.0.1:9090 RAY_GRAFANA_HOST=http://127.0.0.1:3000 ray start --head",
    ]
    return "\n".join(lines)


def prometheus_yml(port: int = PORT) -> str:
    """Ray's ports as its head lists them, and the page of `rayfed monitor --serve`."""
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
    """A metric as exported by Ray (with its prefix) or by rayfed itself, of the chosen runs."""
    return f'{{__name__=~"(ray_)?{name}",run=~"$run",method=~"$method"}}'


def _latest(name: str, by: str) -> str:
    return f"max by ({by}) (last_over_time({selector(name)}[{LATEST}]))"


def _rate(name: str, by: str) -> str:
    return f"sum by ({by}) (rate({selector(name)}[$__rate_interval]))"


def panels() -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(title, unit, [(expression, legend)]); series of replaced actors and servers are taken together."""
    of, who = "run, trial, method", "{{run}} {{trial}}"
    progress = f"{_latest('rayfed_round', of)} / {_latest('rayfed_rounds', of)}"
    quantile = [
        (f"histogram_quantile({q}, {_rate('rayfed_round_seconds_bucket', 'le, run, trial')})", f"{who} {name}")
        for q, name in ((0.5, "median"), (0.95, "95 %"))
    ]
    return [
        ("Running", "short", [(f"sum(last_over_time({selector('rayfed_running')}[{LATEST}]))", "runs")]),
        ("Progress", "percentunit", [(progress, f"{{{{method}}}} {who}")]),
        ("Round", "short", [(_latest("rayfed_round", of), f"{{{{method}}}} {who}")]),
        ("Accuracy", "percentunit", [(_latest("rayfed_accuracy", f"{of}, scope"), f"{who} {{{{scope}}}}")]),
        ("Loss", "short", [(_latest("rayfed_loss", f"{of}, scope"), f"{who} {{{{scope}}}}")]),
        (
            "Other scores",
            "short",
            [(_latest("rayfed_score", f"{of}, name, scope"), f"{who} {{{{name}}}} {{{{scope}}}}")],
        ),
        ("Clients per second", "short", [(_latest("rayfed_clients_per_second", of), who)]),
        ("Seconds per round", "s", quantile),
        (
            "Bytes per second",
            "Bps",
            [(_rate("rayfed_bytes_total", "run, trial, direction"), f"{who} {{{{direction}}}}")],
        ),
        ("Calls waiting or under way", "short", [(_latest("rayfed_queue_depth", of), who)]),
        (
            "Actors replaced",
            "short",
            [(f"sum by (run, trial) (increase({selector('rayfed_actor_restarts_total')}[$__range]))", who)],
        ),
        ("Memory", "bytes", [(_latest("rayfed_memory_bytes", "run, trial, part"), f"{who} {{{{part}}}}")]),
    ]


def dashboard() -> dict[str, Any]:
    """Grafana's JSON: every metric, filtered by run and method."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    made = []
    y = 0
    for i, (title, unit, targets) in enumerate(panels()):
        top = i < 2
        x, width, height = ((0, 4, 6), (4, 20, 6))[i] if top else (12 * (i % 2), 12, 8)
        y = 0 if top else 6 + 8 * ((i - 2) // 2)
        made.append(
            {
                "id": i + 1,
                "title": title,
                "type": "stat" if i == 0 else "bargauge" if i == 1 else "timeseries",
                "datasource": source,
                "gridPos": {"x": x, "y": y, "w": width, "h": height},
                "fieldConfig": {
                    "defaults": {"unit": unit, "min": 0, **({"max": 1} if i == 1 else {})},
                    "overrides": [],
                },
                "options": _options(i),
                "targets": [
                    {"refId": chr(65 + k), "datasource": source, "expr": expr, "legendFormat": legend, "instant": top}
                    for k, (expr, legend) in enumerate(targets)
                ],
            }
        )
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
        "panels": made,
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
