"""Figures of claims in documents: what stands between two comments is written from `claims.json`, and a test holds it to that.

<!-- claim disue_universal disue fedavg accuracy/global @10 -->+0.0476 [+0.0198, +0.0754], better<!-- /claim -->
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayfed.launch.claims_page import number_of

QUOTE = re.compile(r"<!-- claim (\S+) (\S+) (\S+) (.+?) @(\d+) -->.*?<!-- /claim -->")


def documents(root: Path) -> list[Path]:
    """Return the documents of a checkout in which figures of claims may stand."""
    return [f for f in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if f.is_file()]


def with_figures(text: str, verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a document with the figures that these verdicts have now; `not judged` where they have none."""

    def figure(found: re.Match[str]) -> str:
        name, better, than, metric, at = found.groups()
        wanted = (better, than, metric, int(at))
        entry = verdicts.get(name, {})
        results = [] if entry.get("withdrawn") else entry.get("results", [])
        judged = [r for r in results if (r["better"], r["than"], r["metric"], r["at"]) == wanted]
        shown = f"{number_of(judged[0])}, {judged[0]['verdict']}" if judged else "not judged"
        return f"<!-- claim {name} {better} {than} {metric} @{at} -->{shown}<!-- /claim -->"

    return QUOTE.sub(figure, text)
