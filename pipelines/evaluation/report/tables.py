"""Tables of a report, whose cells are text for the HTML page, the Markdown file and the terminal."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as RichTable

from pipelines.evaluation.report import published
from pipelines.evaluation.report.summary import Summary
from pipelines.evaluation.statistics import STATISTICS, Estimate, estimate

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
PUBLISHED_RESAMPLES = 2_000
"""Draws of the bootstrap of a published method, which may have sixty seeds."""
TIDY = ("experiment", "game", "seed", "env_steps", "statistic", "value", "low", "high")
"""Columns of report.csv."""


@dataclass(frozen=True)
class Table:
    """A table with a title and a note."""

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]
    text_columns: int = 1
    """Number of leading columns of words. The columns after them are numbers, except the last `last_text_columns`."""
    last_text_columns: int = 0
    published_rows: int = 0
    """Number of trailing rows of published methods."""

    def is_number(self, column: int) -> bool:
        """Return whether a column has numbers, which are aligned to the right."""
        return self.text_columns <= column < len(self.head) - self.last_text_columns

    def markdown(self) -> str:
        """Return the table as Markdown, with its title and note."""
        rules = ["---:" if self.is_number(column) else "---" for column in range(len(self.head))]
        rows = [[cell.replace("|", "\\|") for cell in row] for row in (self.head, rules, *self.rows)]
        lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        return f"## {self.title}\n\n{self.note}\n\n{lines}\n"

    def terminal(self, without: Collection[str] = ()) -> RichTable:
        """Return the table for a console, without the columns named in `without`."""
        table = RichTable(title=escape(self.title), box=SIMPLE_HEAD, pad_edge=False, title_justify="left")
        shown = [column for column, name in enumerate(self.head) if name not in without]
        for column in shown:
            table.add_column(
                escape(self.head[column]), justify="right" if self.is_number(column) else "left", overflow="fold"
            )
        for row in self.rows:
            table.add_row(*(escape(row[column]) for column in shown))
        return table


def tables(summary: Summary) -> list[Table]:
    """Return all tables of a report that have rows. The most important table comes first."""
    found = [aggregates(summary), improvements(summary), games(summary), beside_published(summary)]
    found += [sources(summary), runs(summary)]
    return [table for table in found if table.rows]


def aggregates(summary: Summary, with_published: bool = True) -> Table:
    """Return the table of statistics over games, with published methods if the runs are comparable with them."""
    names = summary.normalized_games if len(summary.normalized_games) > 1 else ()
    rows = [
        [name, *(_estimate(value, _normalized) for value in statistics.values()), "these runs"]
        for name, statistics in (summary.aggregates if names else {}).items()
    ]
    own = len(rows)
    for method in published.METHODS.values() if with_published and summary.is_comparable and names else ():
        if method.name in published.REFERENCES:
            continue
        scores = published.human_normalized(method.name, names)
        if np.isnan(np.concatenate(scores)).any():
            continue
        cells = {
            name: _estimate(value, _normalized)
            for name, value in estimate(scores, STATISTICS, summary.seed, resamples=PUBLISHED_RESAMPLES).items()
        }
        if min(map(len, scores)) == 1:
            whole = set(names) == set(published.GAMES)
            cells["interquartile mean"] = _normalized(method.iqm if whole else math.nan)
            cells["optimality gap"] = _normalized(method.optimality_gap if whole else math.nan)
        rows.append([method.name, *cells.values(), f"{method.year}, {method.mark}"])
    return Table(
        title=f"Human-normalised scores over {len(names)} games",
        note="0 is random play, 1 is human play. Brackets: 95% intervals of a bootstrap that draws runs within each "
        "game. The interquartile mean leaves out the lowest and the highest quarter of all runs. The optimality gap is "
        "the mean shortfall below 1, so less is better. Published methods have intervals where single runs are public.",
        head=["", *STATISTICS, "source"],
        rows=rows,
        last_text_columns=1,
        published_rows=len(rows) - own,
    )


def improvements(summary: Summary) -> Table:
    """Return the table of the probabilities that an experiment beats the baseline."""
    return Table(
        title=f"Probability of improvement over {summary.baseline}",
        note=f"Probability that a run scores higher than a run of {summary.baseline}, in a game drawn at random from "
        f"{len(summary.shared_games)}; 0.5 means no difference. Brackets: 95% bootstrap intervals.",
        head=["experiment", "P(better)"],
        rows=[[name, _estimate(value, lambda p: f"{p:.2f}")] for name, value in summary.improvements.items()],
    )


def games(summary: Summary) -> Table:
    """Return the table of the scores of every game and experiment."""
    rows = []
    for (experiment, game), group in sorted(summary.groups.items(), key=lambda item: item[0][::-1]):
        statistics = summary.returns[experiment, game]
        row = [
            game,
            experiment,
            str(len(group)),
            _range([run.last.env_steps for run in group]),
            _range([len(run.last.episodes) for run in group]),
            _estimate(statistics["mean"], _return),
            _estimate(statistics["interquartile mean"], _return),
        ]
        if summary.environment == "atari":
            value = float(statistics["mean"].value)
            known = game in published.GAMES
            row.append(_normalized(float(published.normalize(game, value))) if known else NOTHING)
        rows.append(row)
    head = ["game", "experiment", "seeds", "real steps", "episodes", "mean return", "interquartile mean"]
    return Table(
        title="Returns per game",
        note="Raw returns. The score of a seed is the mean over its episodes. Brackets: 95% bootstrap intervals over "
        "seeds.",
        head=[*head, "human-normalised"] if summary.environment == "atari" else head,
        rows=rows,
        text_columns=2,
    )


def beside_published(summary: Summary) -> Table:
    """Return the table of mean returns per game, beside published methods."""
    names = [game for game in summary.games if game in published.GAMES] if summary.is_comparable else []
    rows = []
    for game in names:
        own = [summary.returns.get((experiment, game)) for experiment in summary.experiments]
        rows.append(
            [
                game,
                *(_return(float(statistics["mean"].value)) if statistics else NOTHING for statistics in own),
                *(_published(published.score(game, method)) for method in published.METHODS),
            ]
        )
    return Table(
        title="Beside published scores",
        note=f"Mean raw returns. Published ones were reached after {published.STEPS:,} real steps unless their name "
        "says otherwise; their sources are below.",
        head=["game", *summary.experiments, *published.METHODS],
        rows=rows,
    )


def sources(summary: Summary) -> Table:
    """Return the table of the sources of published scores."""
    return Table(
        title="Sources of published scores",
        note="C: computed from released per-seed files. V: read in a released file. R✓: recalled from the paper; the "
        "mean, the median and the number of superhuman games were recomputed and equal the published ones. F: read "
        "from a figure, with an error of about 5 %.",
        head=["method", "year", "seeds", "mark", "source", "what differs"],
        rows=[
            [method.name, method.year, method.seeds, method.mark, method.source, method.note]
            for method in published.METHODS.values()
            if beside_published(summary).rows
        ],
        text_columns=6,
    )


def runs(summary: Summary) -> Table:
    """Return the table of the runs that were read."""
    return Table(
        title="Runs",
        note="The evaluation that gives the score of each run.",
        head=["folder", "experiment", "game", "policy", "seed", "real steps", "updates", "episodes", "return"],
        rows=[
            [
                str(run.folder),
                run.last.experiment,
                run.last.game,
                run.last.policy,
                str(run.last.seed),
                f"{run.last.env_steps:,}",
                f"{run.last.updates:,}",
                str(len(run.last.episodes)),
                _return(run.last.score),
            ]
            for run in summary.runs
        ],
        text_columns=4,
    )


def tidy(summary: Summary) -> list[dict[str, object]]:
    """Return every number of the report as rows of report.csv: one per run, and one per statistic."""
    rows: list[dict[str, object]] = [
        {
            "experiment": run.last.experiment,
            "game": run.last.game,
            "seed": run.last.seed,
            "env_steps": run.last.env_steps,
            "statistic": "return",
            "value": run.last.score,
        }
        for run in summary.runs
    ]
    for (experiment, game), statistics in summary.returns.items():
        rows += [_tidy(experiment, game, f"{name} return", value) for name, value in statistics.items()]
    for experiment, statistics in summary.aggregates.items():
        rows += [_tidy(experiment, "", f"{name} human-normalised", value) for name, value in statistics.items()]
    for experiment, value in summary.improvements.items():
        rows.append(_tidy(experiment, "", f"probability of improvement over {summary.baseline}", value))
    return rows


def _tidy(experiment: str, game: str, statistic: str, value: Estimate) -> dict[str, object]:
    bounds = {
        name: "" if math.isnan(bound) else float(bound)
        for name, bound in (("low", float(value.low)), ("high", float(value.high)))
    }
    return {"experiment": experiment, "game": game, "statistic": statistic, "value": float(value.value), **bounds}


def _estimate(value: Estimate, text) -> str:
    low, high = float(value.low), float(value.high)
    interval = "" if math.isnan(low) else f" [{text(low)}, {text(high)}]"
    return f"{text(float(value.value))}{interval}"


def _normalized(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:z.3f}".replace("-", MINUS)


def _return(value: float) -> str:
    return f"{value:z,.{1 if abs(value) < 1000 else 0}f}".replace("-", MINUS)


def _published(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:,.{1 if abs(value) < 100 else 0}f}".replace("-", MINUS)


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
