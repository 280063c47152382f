"""Compares runs: `dreamcade report runs/dqn runs/mbpo --baseline dqn`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pipelines.commands.parser import Parser
from pipelines.console import check_folder, check_seed
from pipelines.evaluation.report.runs import load
from pipelines.evaluation.report.summary import Summary

DESCRIPTION = """Compare evaluated runs: learning curves, scores with confidence intervals, and published scores.

Runs of the same experiment and game are averaged over their seeds. Scores on Atari are human-normalised, and those
under the Atari 100k protocol are compared with published methods. Runs whose scores are not comparable are refused. The
result is one page, report.html, with the same tables in report.md and every number in report.csv."""


def report(runs: Sequence[Path], out: Path, baseline: str | None = None, seed: int = 0) -> None:
    """Write report.html, report.md, report.csv and pictures, and print the main table.

    Args:
        runs: folders of runs, or folders with runs beneath them.
        out: folder to write the report to.
        baseline: experiment that the others are compared with; the report adds their probability of improvement over
            the baseline. None adds nothing.
        seed: seed of the bootstrap that gives the intervals.

    Raises:
        UserError: there is nothing to compare, or the runs are not comparable.
    """
    check_folder("--out", out)
    check_seed("--seed", seed)
    summary = Summary(load(runs), baseline, seed)
    # Importing Matplotlib takes a second, so mistakes are reported first.
    from pipelines.evaluation.report import figures, page, tables

    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    with console.status("drawing the report"):
        sheets = figures.sheets(summary)
        for name, figure in sheets.items():
            figure.savefig(out / f"{name}.png", dpi=120)
        (out / "report.html").write_text(page.page(summary), encoding="utf-8")
    (out / "report.md").write_text(_markdown(summary, list(sheets)), encoding="utf-8")
    with (out / "report.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, tables.TIDY)
        writer.writeheader()
        writer.writerows(tables.tidy(summary))

    aggregates = tables.aggregates(summary, with_published=False)
    for table in (aggregates if aggregates.rows else tables.games(summary), tables.improvements(summary)):
        if table.rows:
            console.print(table.terminal(without=("median", "optimality gap", "source", "episodes", "mean return")))
    for note in summary.notes:
        console.print(f"- {note}", highlight=False, markup=False)
    files = ", ".join(str(out / name) for name in ("report.md", "report.csv", *(f"{name}.png" for name in sheets)))
    console.print(f"open {out / 'report.html'}; also written: {files}", soft_wrap=True, highlight=False, markup=False)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and write the report."""
    parser = Parser(prog="dreamcade report", description=DESCRIPTION)
    parser.add_argument("runs", nargs="+", type=str, metavar="RUNS", help="folders of runs, or parents of such folders")
    parser.add_argument("--out", type=str, default="report", metavar="FOLDER", help="folder to write the report to")
    parser.add_argument(
        "--baseline",
        type=str,
        metavar="EXPERIMENT",
        help="experiment that the others are compared with, by the probability that their runs score higher",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap that gives the intervals")
    options = parser.parse_args(list(arguments))
    report([Path(run) for run in options.runs], Path(options.out), options.baseline, options.seed)


def _markdown(summary: Summary, sheets: Sequence[str]) -> str:
    from pipelines.evaluation.report.page import subtitle, title
    from pipelines.evaluation.report.tables import tables

    notes = "".join(f"- {note}\n" for note in summary.notes)
    pictures = "\n".join(f"![{name}]({name}.png)\n" for name in sheets)
    body = "\n".join(table.markdown() for table in tables(summary))
    return f"# {title(summary)}\n\n{subtitle(summary)}\n\n{notes}\n{pictures}\n{body}"
