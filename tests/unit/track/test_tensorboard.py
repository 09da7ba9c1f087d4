"""The TensorBoard sink, read back by TensorBoard itself."""

from __future__ import annotations

import os

import pytest

from rayfed.track.tensorboard import TensorBoard


def test_tensorboard_reads_the_events_and_a_resume_doubles_nothing(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard()
    board.open("run", {}, tmp_path)
    for r in range(1, 8):
        board.row(r, {"round": r, "loss/global": 1.0 / r, "accuracy/global": None, "bytes/up": 5})
    board.close("stopped")
    board = TensorBoard()
    board.open("run", {}, tmp_path)
    for r in range(6, 10):
        board.row(r, {"loss/global": 10.0 + r})
    board.close("done")
    assert len(os.listdir(tmp_path / "tensorboard")) == 2
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"loss/global", "bytes/up"}
    events = found.Scalars("loss/global")
    assert [e.step for e in events] == list(range(1, 10))
    assert [e.value for e in events] == pytest.approx([1 / r for r in range(1, 6)] + [16, 17, 18, 19])
