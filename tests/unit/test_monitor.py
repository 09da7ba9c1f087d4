"""`rayfed monitor`: what it reads, what it refuses, what a browser and Prometheus make of it."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from actors import monitor as on_ray
from rayfed.cli import app
from rayfed.errors import ConfigError
from rayfed.monitor import Server, write_files
from rayfed.monitor.files import dashboard, panels, selector
from rayfed.monitor.read import Board, _actors, _some
from rayfed.report.data import worst_decile
from rayfed.storage.atomic import read_yaml
from rayfed.storage.round_log import read_clients
from rayfed.storage.run_folder import read_metrics
from rayfed.track import prometheus
from rayfed.track.prometheus import BUCKETS, METRICS, Series, readings, trial_name
from tests import toy
from tests.browser import CHROMIUM, browser

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
HARMFUL = "<img src=x onerror=document.title=1>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: one with clusters that is done, one stopped, a torn one, foreign ones."""
    home = tmp_path_factory.mktemp("runs")
    toy.run_folder({"name": "ifca", "clusters": 3}, home / "done", rounds=4, track=["prometheus"])
    toy.run_folder("fedavg", home / "half", rounds=4, stop_after=2, track=["prometheus"])
    torn = next((home / "half").iterdir())
    shutil.copytree(torn, home / "torn")
    (home / "torn" / "state.json").write_text('{"status": "runn')
    with open(next((home / "torn" / "parts").glob("rows-*.jsonl")), "a") as file:
        file.write('{"round": 3, "accur')
    with open(home / "torn" / "events.jsonl", "a") as file:
        file.write('{"time": ')
    for part in (home / "torn" / "parts").glob("clients-*.parquet"):
        part.write_bytes(part.read_bytes()[:40])
    for name, config in {
        "foreign": "a: [1",
        HARMFUL: "- just\n- a list\n",
        "numbers": "method: 3\nrounds: many\n",
    }.items():
        (home / name).mkdir()
        (home / name / "config.yaml").write_text(config)
        (home / name / "lock.json").write_text("[]")
    (home / "numbers" / "parts").mkdir()
    (home / "numbers" / "parts" / "rows-1.jsonl").write_text('{"round": 1, "accuracy/global": "high", "x": {"y": 1}}\n')
    (home / "loop").symlink_to(home)
    return home


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[Server]:
    made = Server(runs, 0)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.close()
    thread.join()


def get(server: Server, path: str, method: str = "GET", host: str | None = None) -> tuple[int, str, dict[str, str]]:
    """(status, body, headers) of a request exactly as written: no client that tidies the path."""
    where = urllib.parse.urlsplit(server.url).netloc
    connection = http.client.HTTPConnection(where, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or where)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), dict(answer.getheaders())


def listed(runs: Path) -> dict[str, dict[str, Any]]:
    return {r["id"].partition("/")[0]: r for r in Board(runs).runs()}


# -- what is read ------------------------------------------------------------------------------------------------------


def test_every_run_has_its_line(runs: Path) -> None:
    found = listed(runs)
    assert set(found) == {"done", "half", "torn", "foreign", HARMFUL, "numbers"}  # links are not followed
    done = found["done"]
    rows = read_metrics(runs / done["id"]).to_pylist()
    assert (done["method"], done["status"], done["round"], done["rounds"]) == ("ifca", "done", 4, 4)
    assert done["metric"] == "accuracy/global" and done["value"] == rows[-1]["accuracy/global"]
    assert done["spark"] == [[r["round"], r["accuracy/global"]] for r in rows]
    assert found["half"]["status"] == "stopped" and "rayfed resume" in found["half"]["note"]
    assert found["torn"]["round"] == 2, "the torn line of round 3 does not count"
    assert found["foreign"]["status"] == "unreadable" and found["foreign"]["note"]


def test_a_run_in_all_its_parts(runs: Path) -> None:
    board = Board(runs)
    run = board.run(listed(runs)["done"]["id"])
    assert run is not None
    folder = runs / run["id"]
    rows = read_metrics(folder).to_pylist()
    panels = {p["name"]: p for p in run["curves"]}
    assert panels["accuracy"]["lines"]["personal"] == [[r["round"], r["accuracy/personal"]] for r in rows]
    assert list(panels)[:2] == ["accuracy", "loss"] and panels["loss"]["lower"] and not panels["accuracy"]["lower"]
    clusters = run["clusters"]
    assert clusters["rounds"] == [1, 2, 3, 4]
    counts = [sum(row[t] > 0 for row in clusters["sizes"]) for t in range(4)]
    assert counts == [r["clusters/count"] for r in rows]
    spread = run["spread"]
    accuracy = spread["measures"][0]
    people = [r for r in read_clients(folder) if not r["unseen"]]
    values = [r["accuracy"] for r in people]
    assert (spread["clients"], spread["unseen"]) == (12, 2) and sum(accuracy["counts"]) == 12
    assert accuracy["worst decile"] == worst_decile(values) and accuracy["worst"][-1] == [4, worst_decile(values)]
    worst = [line[spread["columns"].index("accuracy")] for line in spread["worst"]]
    assert worst == sorted(values)[: len(worst)]
    assert run["about"]["clients"] == 14 and run["about"]["method"] == "ifca"
    assert run["events"][0]["kind"] == "finished"


def test_who_moved_between_clusters(runs: Path) -> None:
    run = Board(runs).run(listed(runs)["done"]["id"])
    assert run is not None
    member = [
        {r["client"]: r["cluster"] for r in read_clients(runs / run["id"], k) if not r["unseen"]} for k in range(1, 5)
    ]
    moved = [sum(now[c] != was.get(c, now[c]) for c in now) for was, now in pairwise(member)]
    assert run["clusters"]["moved"] == [0, *moved]


def test_a_torn_part_costs_only_itself(runs: Path) -> None:
    run = Board(runs).run("torn")
    assert run is not None
    assert "problem" in run["spread"] and "problem" in run["clusters"]
    assert {p["name"] for p in run["curves"]} >= {"accuracy", "loss"}
    assert run["events"] and all(e["kind"] for e in run["events"])
    assert Board(runs).run("numbers")["curves"] == []  # type: ignore[index]  # words and trees are no curves
    assert "problem" in Board(runs).run("foreign")  # type: ignore[operator]


def test_the_folder_may_be_a_run_or_empty(runs: Path, tmp_path: Path) -> None:
    assert Board(tmp_path).runs() == [] and Board(tmp_path / "not there").runs() == []
    (run,) = Board(runs / listed(runs)["done"]["id"]).runs()
    assert run["id"] == "." and run["status"] == "done"


def test_the_list_reads_a_folder_again_only_when_it_changed(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayfed.monitor import read

    folder = tmp_path / "run"
    shutil.copytree(runs / listed(runs)["half"]["id"], folder)
    asked: list[str] = []
    line = read._line
    monkeypatch.setattr(read, "_line", lambda name, path: asked.append(name) or line(name, path))
    board = Board(tmp_path)
    assert board.runs() == board.runs() and asked == ["run"]
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "clients_per_s": 7.5}))
    assert board.runs()[0]["clients_per_s"] == 7.5 and asked == ["run", "run"]


@pytest.mark.parametrize(("n", "most"), [(0, 4), (1, 4), (4, 4), (5, 4), (1000, 32), (1001, 32)])
def test_thinning_keeps_the_ends_and_what_it_showed_before(n: int, most: int) -> None:
    chosen = _some(n, most)
    assert len(chosen) <= most + 1 and chosen == sorted(set(chosen))
    assert n == 0 or (chosen[0] == 0 and chosen[-1] == n - 1)
    assert n < 100 or len(set(_some(n + 1, most)) - set(chosen)) <= 1  # what was read once is read again


def test_processes_are_looked_up_only_where_they_are(tmp_path: Path) -> None:
    me = {"pid": os.getpid(), "node": "a", "device": "cpu", "threads": 1}
    event = {
        "time": "2999-01-01T00:00:00.000Z",
        "kind": "placed",
        "server": os.getpid(),
        "clients": [me, {**me, "node": "b"}],
    }
    lines = [event, {"time": event["time"], "kind": "actor restarted", "actor": 0, "restarts": 1}]

    def seen(lines: list[dict[str, Any]], host: str) -> list[Any]:
        (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        return [p.get("alive") for p in _actors(tmp_path, {"host": host}, [])["processes"]]

    here = socket.gethostname()
    assert seen(lines[:1], here) == [True, True, None]  # the second actor is on another node
    assert seen(lines, here) == [True, None, None]  # the first one was replaced, by a process of another pid
    assert seen(lines[:1], "elsewhere") == [None, None, None]
    assert seen([{**event, "time": "2001-01-01T00:00:00.000Z"}], here)[0] is False  # the pid is somebody else's by now
    found = _actors(tmp_path, {"host": here}, [{"round": 1, "actors/restarts": 3}])
    assert found["restarts"] == 3


@pytest.fixture
def sweep(runs: Path, tmp_path: Path) -> Path:
    """A sweep of three trials in a folder of its own, beside a run; the second has one row, the third has not begun."""
    home = tmp_path / "sweeps"
    shutil.copytree(runs / listed(runs)["done"]["id"], home / "alone")
    about = {
        "options": {"seeds": [1], "metric": "accuracy/global", "scheduler": "none"}, "mode": "max", "trials": 3, "rounds": 4,
        "swept": {"local.epochs": [1, 2, 5]}, "config": {"method": "ifca"},
    }  # fmt: skip
    for i, value in enumerate((0.5, 0.75)):
        place = home / "s" / "trials" / f"{i:05d}"
        shutil.copytree(runs / listed(runs)[("done", "half")[i]]["id"], place / "seed-1")
        row = {
            "round": 4 - 2 * i,
            "folder": f"trials/{place.name}",
            "point": {},
            "seeds": {"1": {"accuracy/global": value}},
        }
        (place / "rows.jsonl").write_text(json.dumps(row))
    (home / "s" / "sweep.yaml").write_text(json.dumps(about))
    return home


def test_a_sweep_has_a_line_of_its_own(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayfed.monitor import read

    board = Board(sweep)
    assert {r["id"] for r in board.runs()} == {"alone", "s/trials/00000/seed-1", "s/trials/00001/seed-1"}
    (found,) = board.sweeps()
    assert (found["id"], found["status"], found["round"], found["rounds"]) == ("s", "interrupted", 6, 12)
    assert found["best"] == 0.5 and found["trials"] == {"planned": 3, "begun": 2, "complete": 1}  # of what is complete
    assert "rayfed sweep --resume" in found["note"]
    (inside,) = Board(sweep / "s").sweeps()
    assert inside["id"] == "." and inside["best"] == 0.5
    asked: list[Path] = []
    monkeypatch.setattr(read, "sweep", lambda path: asked.append(path) or found)
    assert board.sweeps() and not asked, "read again only when it changed"
    os.utime(sweep / "s" / "trials" / "00001" / "rows.jsonl")
    assert board.sweeps() and asked
    monkeypatch.undo()
    (sweep / "s" / "sweep.yaml").write_text("[")
    assert Board(sweep).sweeps() == [] and len(Board(sweep).runs()) == 3, "its runs keep their lines"


# -- the server --------------------------------------------------------------------------------------------------------


def test_it_listens_on_this_machine_only(server: Server) -> None:
    assert server.http.server_address[0] == "127.0.0.1"
    for host in ("example.org", "example.org:80", "", "127.0.0.1.example.org"):  # a page that has its name point here
        assert get(server, "/api/runs", host=host or " ")[0] == 403
    assert get(server, "/", host="localhost:8270")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_only_get(server: Server, method: str) -> None:
    code, _, headers = get(server, "/api/runs", method)
    assert code == 405 and headers["Allow"] == "GET, HEAD"


def test_no_path_leads_out(server: Server, runs: Path) -> None:
    """Whatever is asked, nothing but the page, the two lists and the metrics, of runs that were found."""
    secret = runs.parent / "secret"
    shutil.copytree(runs / listed(runs)["done"]["id"], secret)
    tries = [
        "../secret",
        str(secret),
        "done/../../secret",
        "loop/done",
        "..",
        "/",
        "",
        "./torn",
        "torn/",
        "torn/.",
        "torn\0",
    ]
    for name in tries:
        assert get(server, f"/api/run?id={urllib.parse.quote(name, safe='')}")[0] == 404, name
    for path in (
        "/../secret/config.yaml",
        "/torn/config.yaml",
        "/%2e%2e/secret",
        "//etc/passwd",
        "/api/../secret",
        "/api/run/torn",
    ):
        assert get(server, path)[0] == 404, path
    assert get(server, "/api/run?id=torn")[0] == 200


def no_constant(name: str) -> None:
    pytest.fail(f"{name} is no JSON")


def test_looking_changes_nothing(server: Server, runs: Path) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        files = [p for p in runs.rglob("*") if p.is_file() and not p.is_symlink()]
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}

    before = state()
    for path in ("/", "/metrics", "/api/runs", *(f"/api/run?id={urllib.parse.quote(n)}" for n in Board(runs).paths())):
        code, body, headers = get(server, path)
        assert code == 200 and headers["Content-Security-Policy"].startswith("default-src 'none'"), path
        if path.startswith("/api"):
            json.loads(body, parse_constant=no_constant)
    assert state() == before
    code, body, headers = get(server, "/api/runs", "HEAD")
    assert code == 200 and body == "" and int(headers["Content-Length"]) > 0


def test_a_taken_port(server: Server, runs: Path) -> None:
    port = server.http.server_address[1]
    with pytest.raises(ConfigError, match=f"--port {port}: .*--port 0"):
        Server(runs, port)


# -- Prometheus --------------------------------------------------------------------------------------------------------


def samples(text: str) -> dict[str, float]:
    """`name{labels}` -> value."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_the_text_file_says_what_the_rows_say(runs: Path) -> None:
    folder = runs / listed(runs)["done"]["id"]
    rows, found = read_metrics(folder).to_pylist(), samples((folder / "metrics.prom").read_text())
    run = json.loads((folder / "lock.json").read_text())["run"]
    of = f'run="{run}",trial="",method="ifca"'
    assert found[f"rayfed_round{{{of}}}"] == 4 and found[f"rayfed_rounds{{{of}}}"] == 4
    assert found[f"rayfed_running{{{of}}}"] == 0
    for kind in ("accuracy", "loss"):
        assert found[f'rayfed_{kind}{{{of},scope="personal"}}'] == rows[-1][f"{kind}/personal"]
    assert found[f'rayfed_score{{{of},name="clusters/count",scope=""}}'] == rows[-1]["clusters/count"]
    assert found[f'rayfed_bytes_total{{{of},direction="up"}}'] == sum(r["bytes/up"] for r in rows)
    assert found[f"rayfed_round_seconds_count{{{of}}}"] == 4
    assert found[f"rayfed_round_seconds_sum{{{of}}}"] == pytest.approx(sum(r["time/round"] for r in rows))
    assert not [k for k in found if "client=" in k]


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    first = toy.run_folder("fedavg", tmp_path, rounds=3, stop_after=2, track=["prometheus"])
    toy.run_folder("fedavg", tmp_path, rounds=3, resume=True, track=["prometheus"])
    rows, found = first.folder.metrics().to_pylist(), samples((first.folder.path / "metrics.prom").read_text())
    (up,) = [v for k, v in found.items() if k.startswith("rayfed_bytes_total") and 'direction="up"' in k]
    (count,) = [v for k, v in found.items() if k.startswith("rayfed_round_seconds_count")]
    assert len(rows) == count == 3 and up == sum(r["bytes/up"] for r in rows)


def test_readings_of_a_row() -> None:
    row = {
        "round": 3, "accuracy/global": 0.5, "accuracy/global_ex": 0.4, "rmse/unseen": 2.0, "loss/personal": float("nan"),
        "my/thing": 1, "time/round": 2.5, "bytes/up": 10, "actors/restarts": 5, "clients/per_second": None, "ray/bytes": 1.0,
    }  # fmt: skip
    found = {(n, *labels.values()): v for n, v, labels in readings(row, restarts=3)}
    assert found == {
        ("rayfed_round",): 3, ("rayfed_round_seconds",): 2.5, ("rayfed_bytes_total", "up"): 10, ("rayfed_bytes_total", "down"): 0,
        ("rayfed_actor_restarts_total",): 2, ("rayfed_accuracy", "global"): 0.5, ("rayfed_score", "rmse", "unseen"): 2.0,
        ("rayfed_score", "my/thing", ""): 1,
    }  # fmt: skip


def test_a_histogram_is_cumulative_and_labels_are_quoted() -> None:
    series = Series()
    for seconds in (0.05, 0.1, 2.0, 1e6):
        series.put("rayfed_round_seconds", seconds, {"run": 'a"\\\n'})
    text = series.text()
    found = [v for k, v in samples(text).items() if "_bucket" in k]
    assert found == [sum(s <= b for s in (0.05, 0.1, 2.0, 1e6)) for b in (*BUCKETS, float("inf"))] and found[-1] == 4
    assert r'run="a\"\\\n"' in text


def test_trials_are_named_by_study_and_sweep(tmp_path: Path) -> None:
    for home, file in (("study", "study.yaml"), ("sweep", "sweep.yaml")):
        (tmp_path / home).mkdir()
        (tmp_path / home / file).touch()
    assert trial_name(tmp_path / "study" / "ifca" / "seed-2") == "ifca/seed-2"
    assert trial_name(tmp_path / "sweep" / "t3" / "clone-1" / "seed-0") == "t3/clone-1/seed-0"
    (tmp_path / "study.yaml").touch()  # a study's file beside the folder of runs makes no study of them
    assert trial_name(tmp_path / "runs" / "alone-20260101-000000-abcd") == ""


class Told:
    """An exporter that writes down."""

    def __init__(self, labels: dict[str, str]):
        self.labels, self.restarts, self.put_down, self.closed = labels, 2, [], 0  # type: ignore[var-annotated]

    def put(self, name: str, value: float, /, **labels: str) -> None:
        self.put_down.append((name, value, labels))

    def publish(self) -> None: ...

    def close(self) -> None:
        self.closed += 1


def test_another_exporter_takes_the_place_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Told] = []
    monkeypatch.setattr(prometheus, "_exporter", None)
    prometheus.set_exporter(lambda labels: made.append(Told(labels)) or made[-1])  # type: ignore[func-returns-value]
    ran = toy.run_folder("fedavg", tmp_path, rounds=2, track=["prometheus"])
    (told,) = made
    assert told.labels == {"run": ran.folder.run_id, "trial": "", "method": "fedavg"} and told.closed == 1
    assert [v for n, v, _ in told.put_down if n == "rayfed_round"] == [1, 2]
    assert [v for n, v, _ in told.put_down if n == "rayfed_running"] == [1, 0]
    assert all(set(labels) == set(METRICS[name].labels) for name, _, labels in told.put_down)
    assert not (ran.folder.path / prometheus.FILE).exists()


def test_the_pages_metrics(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs, whatever they track, but neither those that Ray exports nor those that ended long ago."""
    for name in ("file", "ray", "old"):
        shutil.copytree(runs / listed(runs)["done"]["id"], tmp_path / name)
        lock = json.loads((tmp_path / name / "lock.json").read_text())
        (tmp_path / name / "lock.json").write_text(json.dumps({**lock, "run": name}))
        os.utime(tmp_path / name / "state.json")
    with open(tmp_path / "ray" / "events.jsonl", "a") as file:
        file.write(
            json.dumps({"time": "2026-01-01T00:00:00.000Z", "kind": "placed", "server": 1, "clients": []}) + "\n"
        )
    os.utime(tmp_path / "old" / "state.json", (1.0, 1.0))
    found = samples(Board(tmp_path).prometheus())
    assert {re.search('run="([^"]*)"', k).group(1) for k in found} == {"file"}  # type: ignore[union-attr]
    mine = samples((runs / listed(runs)["done"]["id"] / "metrics.prom").read_text())
    assert sorted(v for k, v in found.items() if "queue" not in k) == pytest.approx(
        sorted(v for k, v in mine.items() if "queue" not in k)
    )


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


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


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


# -- names in Ray's dashboard ------------------------------------------------------------------------------------------


def test_names_of_rounds_are_few() -> None:
    c = toy.config(rounds=4)
    state = {"run": "a", "status": "running", "round": 1}
    assert on_ray.round_name(c, state) == "fedavg round 2/4, 7 of 14 clients"
    assert on_ray.round_name(c, {**state, "status": "starting", "round": 0}) == "fedavg starting, 7 of 14 clients"
    assert on_ray.round_name(c, {**state, "round": 4}) is None
    assert (
        on_ray.round_name(c, {**state, "status": "done"}) is None
        and on_ray.round_name(c, {"status": "starting"}) is None
    )
    long = toy.config(rounds=1005)
    names = {on_ray.round_name(long, {**state, "round": r}) for r in range(1005)}
    assert len(names) <= 100 and "fedavg rounds 1-11/1005, 7 of 14 clients" in names
    assert "fedavg rounds 1002-1005/1005, 7 of 14 clients" in names


class FakeServer:
    """Notes what `during.options(name=...).remote(...)` was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int]] = []
        self.during = self

    def options(self, name: str) -> Any:
        self.name = name
        return self

    def remote(self, run: str, until: int) -> None:
        self.calls.append((self.name, run, until))


def test_each_name_is_shown_once_and_until_its_rounds_are_over() -> None:
    server = FakeServer()
    shown = on_ray.Shown(server, toy.config(rounds=4))
    for status, r in (("starting", 0), ("starting", 0), ("running", 1), ("running", 1), ("running", 3), ("done", 4)):
        shown.tell({"run": "a", "status": status, "round": r})
    assert [(name.partition(",")[0], until) for name, _, until in server.calls] == [
        ("fedavg starting", 1),
        ("fedavg round 2/4", 2),
        ("fedavg round 4/4", 4),
    ]


def test_a_request_in_the_list_of_jobs() -> None:
    found = on_ray.job_metadata([toy.config(), toy.config({"name": "ifca", "clusters": 2})])
    assert found["job_name"] == "rayfed toy" and found["method"] == "fedavg, ifca" and found["clients"] == "14"
    assert found["runs"] == "2" and all(isinstance(v, str) for v in found.values())


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    call = CliRunner().invoke
    nothing = call(app, ["monitor", str(tmp_path)])
    assert isinstance(nothing.exception, ConfigError) and "--serve" in str(nothing.exception)
    missing = call(app, ["monitor", str(tmp_path / "no"), "--serve"])
    assert isinstance(missing.exception, ConfigError) and "is not a folder" in str(missing.exception)
    wrote = call(app, ["monitor", "--out", str(tmp_path / "out")])
    assert wrote.exit_code == 0 and (tmp_path / "out" / "prometheus.yml").is_file()
    assert f"prometheus --config.file={tmp_path}/out/prometheus.yml" in wrote.output and "grafana" in wrote.output


# -- a real browser ----------------------------------------------------------------------------------------------------

WIDER = "document.documentElement.scrollWidth - innerWidth"
INK = "getComputedStyle(document.body).backgroundColor"
POINTER = """(() => { const s = document.querySelector('.grids svg'), b = s.getBoundingClientRect();
s.dispatchEvent(new PointerEvent('pointermove', {clientX: b.left + b.width, clientY: b.top + 5}));
return s.parentElement.querySelector('.said').textContent; })()"""
FILTER = """new Promise(done => { const i = document.querySelector('#seek'); i.value = 'ifca'; i.dispatchEvent(new Event('input'));
setTimeout(() => done(document.querySelectorAll('.run').length), 1500); })"""


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed (apt-get install chromium)")
def test_a_browser_shows_it(server: Server, runs: Path, tmp_path: Path) -> None:
    run = listed(runs)["done"]["id"]
    address = f"{server.url}#{urllib.parse.quote(run, safe='')}"
    with browser() as b:
        text, states, title, wide = b.look(
            server.url,
            "document.body.innerText",
            "[...document.querySelectorAll('.state')].map(s => s.textContent)",
            "document.title",
            WIDER,
            picture=tmp_path / "list.png",
        )
        assert sorted(states) == sorted(r["status"] for r in listed(runs).values()) and "unreadable" in states
        assert HARMFUL in text and title == "rayfed monitor", "names are text"
        assert wide <= 0 and (tmp_path / "list.png").stat().st_size > 10_000
        for width in (1280, 400):
            heads, lines, bars, wide, said, light = b.look(
                address,
                "[...document.querySelectorAll('h2')].map(h => h.innerText)",
                "document.querySelectorAll('polyline').length",
                "document.querySelectorAll('rect').length",
                WIDER,
                POINTER,
                INK,
                width=width,
            )
            assert heads[1:] == ["Scores", "Clusters", "Clients", "Actors", "Cost", "Events"]
            assert lines >= 8 and bars >= 8 and wide <= 0
            assert said.startswith("round 4: ") and "personal" in said
        assert b.look(address, INK, dark=True) != [light], "dark follows the system"
        torn, problems = b.look(
            f"{server.url}#torn", "document.body.innerText", "document.querySelectorAll('.problem').length"
        )
        assert "cannot be read" in torn and problems >= 2 and "SCORES" not in torn and "accuracy" in torn
        gone = b.look(f"{server.url}#nothing", "document.body.innerText")[0]
        assert "There is no such run" in gone
        assert b.look(server.url, FILTER) == [1]


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed (apt-get install chromium)")
def test_the_page_follows_a_run(runs: Path, tmp_path: Path) -> None:
    """New rounds appear without a hand, and a server that went away is said."""
    shutil.copytree(runs / listed(runs)["done"]["id"], tmp_path / "live")
    board = Server(tmp_path, 0)
    thread = threading.Thread(target=board.serve_forever)
    thread.start()
    renamed = threading.Timer(2.0, lambda: os.rename(tmp_path / "live", tmp_path / "renamed"))
    follow = """new Promise(done => { const t = setInterval(() => { document.dispatchEvent(new Event('visibilitychange'));
    if (document.body.innerText.includes('renamed')) { clearInterval(t); done('seen'); } }, 300); })"""
    with browser() as b:
        renamed.start()
        assert b.look(board.url, follow) == ["seen"]
    board.close()
    thread.join()


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed (apt-get install chromium)")
def test_a_sweeps_runs_are_shown_when_asked_for(sweep: Path) -> None:
    board = Server(sweep, 0)
    thread = threading.Thread(target=board.serve_forever)
    thread.start()
    seen = "[...document.querySelectorAll('.run')].filter(r => r.checkVisibility()).map(r => r.querySelector('b').innerText)"
    again = "document.querySelector('.sweep summary').click(), new Promise(done => setTimeout(() => look().then(done), 100))"
    with browser() as b:
        before, said, _, after, _, shut = b.look(
            board.url, seen, "document.querySelector('.sweep summary').innerText", again, seen, again, seen
        )
    board.close()
    thread.join()
    assert sorted(before) == ["alone", "s"] == sorted(shut)
    assert "1 of 3 trials" in said and "50.0 %" in said and "interrupted" in said and "2 runs" in said
    assert sorted(after) == ["alone", "s", "trials/00000/seed-1", "trials/00001/seed-1"], (
        "open also when it looks again"
    )
