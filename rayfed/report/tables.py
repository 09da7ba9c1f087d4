"""A table of results over seeds, as text for a terminal, Markdown, LaTeX, CSV or HTML: for papers and notebooks."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfed.errors import ConfigError, nearest
from rayfed.metrics import OF_STREAM, SCOPES, lower_is_better
from rayfed.report.html import joined, number, part
from rayfed.report.ranks import RankTests, lines, note, rank_tests
from rayfed.report.statistics import mean_interval
from rayfed.report.subject import Subject

if TYPE_CHECKING:
    import pyarrow as pa

FEW = 5  # seeds below which a table carries a caution
FORMATS = ("md", "latex", "csv")
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


class Cell(NamedTuple):
    """A final value over seeds: mean, sample standard deviation, half the width of the mean's 95 % interval, number of seeds."""

    mean: float
    sd: float | None
    ci95: float | None
    n: int


@dataclass(frozen=True)
class ResultTable:
    """Final values by arm and metric; `str` is a table for a terminal. caution: what a reader should know of them, "" if nothing;
    ranks: tests of the ranks of several arms, by metric."""

    metrics: tuple[str, ...]
    arms: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]  # (arm, metric)
    seeds: Mapping[str, int]  # arm -> its runs that are done
    caution: str = ""
    ranks: tuple[RankTests, ...] = ()

    def best(self, metric: str) -> list[str]:
        """Return the arms with the best mean; none where a metric has no better, or where there is nothing to compare."""
        means = {arm: self.cells[arm, metric].mean for arm in self.arms if (arm, metric) in self.cells}
        directed = metric == "clusters/ari" or metric.partition("/")[2].removesuffix("_ex") in {*SCOPES, *OF_STREAM}
        if len(set(means.values())) < 2 or not directed:
            return []
        least = (min if lower_is_better(metric) else max)(means.values())
        return [arm for arm, mean in means.items() if mean == least]

    def text(self, form: str) -> str:
        """Return the table as md | latex | csv. ConfigError for another form."""
        made = {"md": self.to_markdown, "latex": self.to_latex, "csv": self.to_csv}
        if form not in made:
            raise ConfigError(f"--table: {form!r} found{nearest(form, FORMATS)}, allowed: {', '.join(FORMATS)}")
        return made[form]()

    def to_markdown(self) -> str:
        """Return the table in Markdown, best means in bold."""
        head = ["arm", *self.metrics, "seeds"]
        body = [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
        body += [_row([arm, *cells, str(self.seeds[arm])]) for arm, cells in self._text("**{}**", "±", "–").items()]
        out = "\n".join(body) + f"\n\n{self._note()}\n"
        if not self.ranks:
            return out
        head, *ranked = self._ranks()
        body = [_row(head), _row(["---", *["---:"] * (len(head) - 1)]), *map(_row, ranked)]
        return f"{out}\n" + "\n".join(body) + f"\n\n{note(self.ranks)}\n"

    def to_latex(self) -> str:
        """Return the table in LaTeX, for the package booktabs, best means in bold."""
        out = [f"% {self._note()}", rf"\begin{{tabular}}{{l{'r' * (len(self.metrics) + 1)}}}", r"\toprule"]
        out += [_latex_row(["arm", *self.metrics, "seeds"]), r"\midrule"]
        for arm, cells in self._text(r"\textbf{{{}}}", r"$\pm$", "--").items():
            out.append(" & ".join([_latex(arm), *cells, str(self.seeds[arm])]) + r" \\")
        out += [r"\bottomrule", r"\end{tabular}"]
        if self.ranks:
            head, *body = self._ranks()
            out += ["", f"% {note(self.ranks)}", rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule"]
            out += [_latex_row(head), r"\midrule", *map(_latex_row, body), r"\bottomrule", r"\end{tabular}"]
        return "\n".join(out) + "\n"

    def to_csv(self) -> str:
        """Return a line per arm and metric with all digits: arm, metric, mean, sd, ci95, n, and where arms are compared rank, wilcoxon
        (against the first arm) and holm."""
        sink = io.StringIO()
        writer = csv.writer(sink, lineterminator="\n")
        more = ("rank", "wilcoxon", "holm") if self.ranks else ()
        writer.writerow(["arm", "metric", *Cell._fields, *more])
        tests = {t.metric: t for t in self.ranks}
        for (arm, metric), cell in self.cells.items():
            t = tests.get(metric)
            of = (t.ranks.get(arm), t.wilcoxon.get(arm), t.holm.get(arm)) if t else (None, None, None)
            writer.writerow([arm, metric, *cell, *(of if more else ())])
        return sink.getvalue()

    def to_arrow(self) -> pa.Table:
        """Return a row per arm and metric: arm, metric, mean, sd, ci95, n."""
        import pyarrow as pa

        rows = [{"arm": arm, "metric": metric, **cell._asdict()} for (arm, metric), cell in self.cells.items()]
        columns = {
            "arm": pa.string(),
            "metric": pa.string(),
            "mean": pa.float64(),
            "sd": pa.float64(),
            "ci95": pa.float64(),
        }
        return pa.Table.from_pylist(rows, schema=pa.schema([*columns.items(), ("n", pa.int64())]))

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        from markupsafe import Markup

        body = [
            [arm, *map(Markup, cells), self.seeds[arm]]  # of numbers
            for arm, cells in self._text("<b>{}</b>", "±", "–").items()
        ]
        table = part("plain_table", ["arm", *self.metrics, "seeds"], body)
        return joined([table, part("paragraph", self._note())])

    def __str__(self) -> str:
        return self.to_markdown()

    def _ranks(self) -> list[list[str]]:
        """Return the lines of the table of ranks, its head first."""
        head = ["mean rank", *self.arms, "seeds", "Friedman p", *(f"p, {arm}" for arm in self.arms[1:])]
        return [head, *lines(self.ranks, self.arms)]

    def _note(self) -> str:
        about = "Final values, mean ± standard deviation over seeds."
        return f"{about} {self.caution}".rstrip()

    def _text(self, bold: str, sign: str, missing: str) -> dict[str, list[str]]:
        """Return arm -> its cells as text."""
        out: dict[str, list[str]] = {}
        for arm in self.arms:
            out[arm] = []
            for metric in self.metrics:
                cell = self.cells.get((arm, metric))
                if cell is None:
                    out[arm].append(missing)
                    continue
                mean = number(cell.mean, metric)
                mean = bold.format(mean) if arm in self.best(metric) else mean
                spread = "" if cell.sd is None else f" {sign} {number(cell.sd, metric)}"
                out[arm].append(mean + spread)
        return out


def result_table(subject: Subject, metrics: Sequence[str] = ()) -> ResultTable:
    """Return the final values of a run's, study's or comparison's runs that are done.

    metrics: those of the columns, by default all scores (not the means over examples). ConfigError for one that was not measured.
    """
    known = subject.quality_metrics()
    if wrong := [m for m in metrics if m not in subject.metrics]:
        raise ConfigError(
            [f"metric {m!r} was not measured{nearest(m, subject.metrics)}; there is {', '.join(known)}" for m in wrong]
        )
    chosen, cells = tuple(metrics or known), {}
    for arm, runs in subject.done.items():
        for metric in chosen:
            values = [v for v in (run.final(metric) for run in runs) if v is not None]
            mean, sd, half = mean_interval(values)
            if mean is not None:
                cells[arm, metric] = Cell(mean, sd, half, len(values))
    seeds = {arm: len(runs) for arm, runs in subject.done.items()}
    return ResultTable(chosen, tuple(subject.done), cells, seeds, caution(seeds), tuple(rank_tests(subject, chosen)))


def caution(seeds: Mapping[str, int]) -> str:
    """Return a sentence where several arms are compared over fewer than FEW seeds, arm -> how many; else the empty string."""
    least = min((n for n in seeds.values() if n), default=FEW)
    if len(seeds) < 2 or least >= FEW:
        return ""
    return (
        f"Caution: {least} seed{'s' * (least != 1)} only; with fewer than {FEW} a mean says little about which arm is better: "
        "see the paired intervals, or run more seeds."
    )


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(c).replace('|', chr(92) + '|') for c in cells)} |"


def _latex(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in text)


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"
