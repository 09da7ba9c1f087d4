"""The report card of a study's arms, worked out here from values that are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayfed.report import card
from rayfed.report.subject import RunRecord, Subject
from tests.configs import refusal

CLIENTS = [0.9, 0.8, 0.1, *[0.5] * 17]  # the worst tenth of twenty are two


class Record(RunRecord):
    """A run whose clients are given."""

    @property
    def clients(self) -> list[dict[str, Any]]:
        return [{"client": i, "round": 2, "accuracy": v, "unseen": False} for i, v in enumerate(CLIENTS)]


def made(retained: dict[str, float], clients: dict[str, int] | None = None) -> Subject:
    arms = {}
    for arm, kept in retained.items():
        rows = [
            {"round": r, "accuracy/global": 0.5 + r / 10, "loss/global": 1.0, "accuracy/retained": kept, "bytes/up": 1e6,
             "bytes/down": 2e6, "clients/visits": 4}
            for r in (1, 2)
        ]  # fmt: skip
        config = {
            "method": {"name": arm},
            "local": {"steps": 5},
            "federation": {"clients": (clients or {}).get(arm, 4)},
        }
        summary = {"status": "done", "parameters": {"trained": 50, "all": 1000}}
        arms[arm] = [Record(Path("x"), arm, 0, config, summary, "done", rows)]
    return Subject("study", [Path("x")], "x", {}, arms, len(arms))


def test_a_card_says_what_is_trained_sent_done_and_reached() -> None:
    head, base, fedavg = card.lines(made({"base": 0.9, "fedavg": 0.6}))
    line = dict(zip(head, fedavg, strict=True))
    assert line["trained"] == "50 (5.0%)" and line["local work"] == "4 × 5 steps"
    assert (line["sent a round"], line["sent in all"]) == ("3.0 MB", "6.0 MB")
    assert line["accuracy, global"] == "0.7000" and line["accuracy, worst tenth"] == "0.3000"
    assert line["accuracy, retained"] == "0.6000 (−0.3000)" and base[head.index("accuracy, retained")] == "0.9000"
    assert "loss, global" in head and "loss, retained" in head and line["loss, retained"] == "–"


def test_arms_on_another_split_are_named() -> None:
    assert "All arms have the same split" in card.about(made({"a": 1.0, "b": 1.0}))
    assert "All arms but c have the same split" in card.about(made({"a": 1.0, "b": 1.0, "c": 1.0}, {"c": 1}))


def test_what_was_not_measured_is_refused() -> None:
    said = refusal(card.lines, made({"a": 1.0}), ["acuracy"])
    assert said == "--metric: 'acuracy' was not measured (did you mean 'accuracy'?); there is accuracy, loss"
    text = card.markdown(made({"a": 1.0}), ["loss"])
    assert "loss, global" in text and "accuracy" not in text


@pytest.mark.parametrize("command", [["--table", "md"], ["--figures", "here"]])
def test_a_card_comes_alone(command: list[str], tmp_path: Path) -> None:
    from rayfed.cli.results import report
    from rayfed.storage.run_folder import RunFolder
    from tests.unit.report.folders import CONFIG, ME, make_short_run

    run = make_short_run(RunFolder.create(tmp_path, CONFIG, owner=ME), [0.5])
    given: dict[str, Any] = {"table": "md"} if command[0] == "--table" else {"figures": tmp_path}
    said = refusal(report, [run], None, given.get("figures"), "pdf", given.get("table"), card=True)
    assert said == "report: --card found beside --table or --figures; allowed: one of them"
