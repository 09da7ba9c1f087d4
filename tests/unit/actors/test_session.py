"""What a Ray on this machine has."""

from __future__ import annotations

import pytest

from actors.session import local_node


@pytest.mark.parametrize(("visible", "gpus"), [("", 0), ("0", 1), ("2,5", 2), (" , ", 0)])
def test_this_machine_has_the_visible_cards(monkeypatch: pytest.MonkeyPatch, visible: str, gpus: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    node = local_node()
    assert node["GPU"] == gpus
    assert node["CPU"] >= 1


@pytest.mark.parametrize("visible", ["-1", "NoDevFiles"])
def test_the_usual_ways_to_hide_all_cards(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local_node()["GPU"] == 0
