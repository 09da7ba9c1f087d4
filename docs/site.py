"""Hooks of the docs site (mkdocs.yml): pages outside docs/ that its pages name are part of the site, other files are named only."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    f"benchmarks/{n}.md": f"benchmarks/{n}.md"
    for n in ("CLAIMS", "PERSONALISED", "PEERS", "SCALE", "KILL", "EVALUATION")
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages of benchmarks/."""
    from mkdocs.structure.files import File

    for place, source in OUTSIDE.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, place, content=(ROOT / source).read_text(encoding="utf-8")))
    for picture in sorted((ROOT / "benchmarks").glob("*.png")):
        files.append(File.generated(config, f"benchmarks/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite links that leave the folder: to a page that the site has, or to plain words with the file's path."""
    here = page.file.src_uri
    outside = here in OUTSIDE

    def rewritten(found: re.Match[str]) -> str:
        words, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        # Where the target lies in the repository: pages of benchmarks/ stand beside docs/, all others in it.
        base = posixpath.dirname(here if outside else f"docs/{here}")
        path = posixpath.normpath(posixpath.join(base, target))
        place = path.removeprefix("docs/") if path.startswith("docs/") else OUTSIDE.get(path)
        if place and files.get_file_from_path(place):
            return f"[{words}]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{anchor})"
        return f"{words} (`{path}`)" if path not in words else words

    return LINK.sub(rewritten, markdown)
