"""Write README's picture and table of the quickstart from a finished run of it.

rayfed run quickstart --out runs
python docs/pictures/quickstart.py runs/quickstart-*
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from PIL import Image

import rayfed

ROOT = Path(__file__).parents[2]
METRICS = ("accuracy/global", "accuracy/personal", "clusters/ari")
BEGIN, END = "<!-- quickstart: written by docs/pictures/quickstart.py -->", "<!-- end of quickstart -->"


def main(folder: Path) -> None:
    """Write both."""
    study = rayfed.load(folder)
    assert isinstance(study, rayfed.Study) and study.summary is not None and study.summary["status"] == "done"
    file = study.plot("accuracy/global", "accuracy/personal").save(ROOT / "docs" / "pictures" / "quickstart.png")
    with Image.open(file) as drawn:
        few = drawn.convert("RGB").quantize(32)  # a third of the bytes
    few.save(file, optimize=True)
    runs = [run.summary for seeds in study.arms.values() for run in seeds.values()]
    seconds = sum(s["wall_s"] for s in runs if s)
    table, _, _ = study.table(*METRICS).to_markdown().partition("\n\n")
    said = f"{len(runs)} runs in {seconds / 60:.1f} minutes on two CPU cores, mean ± standard deviation over seeds:"
    readme = ROOT / "README.md"
    text = re.sub(
        f"{BEGIN}.*{END}",
        lambda _: f"{BEGIN}\n{said}\n\n{table}\n{END}",
        readme.read_text(encoding="utf-8"),
        flags=re.S,
    )
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
