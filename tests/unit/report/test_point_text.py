"""Points of a sweep as text."""

from __future__ import annotations

from rayfed.report.point_text import point_text, short_names


def test_points_are_short() -> None:
    assert short_names(["method.clusters", "a.alpha", "b.alpha"]) == {
        "method.clusters": "clusters",
        "a.alpha": "a.alpha",
        "b.alpha": "b.alpha",
    }
    assert (
        point_text({"federation.groups": {"kind": "rotation", "count": 2}, "local.lr": 0.1000000001})
        == "groups=rotation(count=2) lr=0.1"
    )
