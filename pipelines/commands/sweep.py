"""Searches hyperparameters without W&B's server: `dreamcade sweep configs/sweep/mbpo_bayes.yaml --count 20`."""

from __future__ import annotations

import csv
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from modules.errors import UserError, check_range
from pipelines.commands.parser import Parser
from pipelines.console import check_folder, check_seed
from pipelines.sweeps.sweep_file import Sweep, find, read
from pipelines.sweeps.trials import Result, Trials

RUNS = Path("runs")
DESCRIPTION = """Search hyperparameters with many runs of one W&B sweep file, without W&B's server.

FILE has W&B's format, as the files in configs/sweep/ have, so `wandb sweep` accepts it too. The method grid runs all
combinations; the methods random and bayes need --count N. Every trial is a `dreamcade fit` in its own folder, and its
result is the last value of the metric in its metrics.csv. The same command resumes a sweep that was stopped or killed.
"""


def sweep(file: Path, count: int | None, folder: Path | None, jobs: int, seed: int) -> None:
    """Run the trials of a sweep file, and write results.csv and parallel_coordinates.png.

    Args:
        file: sweep file in W&B's format.
        count: total number of trials, including earlier calls; None takes the file's run_cap or the whole grid.
        folder: folder of the sweep; None takes runs/sweep_<file>.
        jobs: number of runs at the same time.
        seed: seed of the drawn hyperparameters; `seed_everything` seeds the runs.

    Raises:
        UserError: the file is wrong, `dreamcade fit` does not accept a drawn value, or every trial failed.
    """
    check_range("--count", count, 1)
    check_range("--jobs", jobs, 1)
    check_seed("--seed", seed)
    check_folder("--folder", folder)
    plan = read(file)
    limits = [number for number in (count or plan.content.get("run_cap"), plan.size()) if number is not None]
    if not limits:
        raise UserError(f"{file}: method {plan.method} draws trials without end: give --count N")
    plan.check()
    trials = Trials(plan, folder or RUNS / f"sweep_{file.stem}", seed)
    total = min(limits)
    columns = (TextColumn("sweeping"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    stopped = False
    with Progress(*columns, TextColumn("{task.fields[best]}")) as progress:
        task = progress.add_task("sweeping", total=total, best="")

        def tell(result: Result | None = None) -> None:
            if result is not None:
                progress.console.print(line(plan, result), highlight=False, markup=False, soft_wrap=True)
            results = trials.results()
            write(plan, results, trials.folder)
            over = sum(found.state != "running" for found in results)
            values = [found.value for found in results if found.state == "complete"]
            best = f"best {plan.metric} {values[0]:.4g}" if values else ""
            progress.update(task, completed=over, total=max(total, over), best=best)

        tell()
        try:
            trials.run(total, jobs, tell)
        except KeyboardInterrupt:
            stopped = True
        finally:
            signal.signal(signal.SIGTERM, before)
    results = trials.results()
    write(plan, results, trials.folder)
    console = Console()
    console.print(table(plan, results))
    names = ("results.csv", "parallel_coordinates.png")
    files = [str(trials.folder / name) for name in names if (trials.folder / name).exists()]
    console.print(f"also written: {', '.join(files)}", soft_wrap=True, highlight=False)
    if stopped:
        print("dreamcade: stopped; the same command resumes the sweep", file=sys.stderr)
    elif all(result.state == "failed" for result in results):
        raise UserError(f"every trial failed, the last one: {max(results, key=lambda r: r.number).error}")


def line(plan: Sweep, result: Result) -> str:
    """Return one line about a finished trial."""
    drawn = " ".join(f"{name}={_text(result.parameters[name])}" for name in _varied(plan))
    outcome = f"{plan.metric} {_text(result.value)}" if result.value is not None else ""
    state = "" if result.state == "complete" else result.state
    return " ".join(filter(None, (f"{result.folder.name}:", state, outcome, result.error, drawn)))


def write(plan: Sweep, results: Sequence[Result], folder: Path) -> None:
    """Write results.csv with the best trial first, and parallel_coordinates.png."""
    # Importing Matplotlib takes a second, so mistakes are reported first.
    from pipelines.sweeps.picture import draw

    names = [parameter.name for parameter in plan.parameters]
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", plan.metric, *names, "folder", "error"])
        for result in results:
            drawn = [result.parameters.get(name) for name in names]
            writer.writerow([result.number, result.state, result.value, *drawn, result.folder, result.error])
    draw(plan, results, folder / "parallel_coordinates.png")


def table(plan: Sweep, results: Sequence[Result]) -> Table:
    """Return the results as a table for the console, the best trial first."""
    shown = Table(title=f"{plan.path.stem}: {plan.metric}, {plan.goal}d", box=SIMPLE_HEAD, title_justify="left")
    shown.add_column("trial")
    shown.add_column("state")
    shown.add_column(plan.metric, justify="right", overflow="fold")
    for name in _varied(plan):
        shown.add_column(name.replace("init_args.", ""), justify="right", overflow="fold")
    for result in results:
        drawn = [_text(result.parameters.get(name)) for name in _varied(plan)]
        shown.add_row(result.folder.name, result.state, _text(result.value), *drawn)
    return shown


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and run the sweep."""
    parser = Parser(prog="dreamcade sweep", description=DESCRIPTION)
    parser.add_argument("file", type=str, metavar="FILE", help="W&B sweep file, or the name of one in configs/sweep/")
    parser.add_argument(
        "--count",
        type=int | None,
        metavar="N",
        help="total number of trials, including those of earlier calls; null takes run_cap of FILE, or the whole grid",
    )
    parser.add_argument(
        "--folder", type=str | None, metavar="FOLDER", help="folder of the sweep; null is runs/sweep_<name of FILE>"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="number of runs at the same time")
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawn hyperparameters")
    options = parser.parse_args(list(arguments))
    folder = None if options.folder is None else Path(options.folder)
    sweep(find(options.file), options.count, folder, options.jobs, options.seed)


def _varied(plan: Sweep) -> list[str]:
    return [parameter.name for parameter in plan.parameters if len(parameter.choices) != 1]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else Path(str(value)).stem if str(value).endswith(".yaml") else str(value)
