"""Figures of a report. One function draws a kind of panel, both for the PNG files and for the HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipelines.evaluation.report import published
from pipelines.evaluation.report.summary import Curve, Summary
from pipelines.evaluation.report.tables import MINUS
from pipelines.evaluation.statistics import STATISTICS, Estimate

INK, MUTED, LINE = "#1b2129", "#7c8691", "#d9dee4"
"""Colours that the HTML page replaces by those of its theme."""
COLORS = ("#2f7ed8", "#e0672b", "#1a9e77", "#c44fa5", "#b58900", "#7b68d9", "#d0454c", "#4d9fb0")
"""Colours of experiments. In this order they are distinct on white, on black, and for colour-blind readers."""
DASHES = ("-", "--", ":", "-.")
STYLE: dict[Any, Any] = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.edgecolor": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "grid.color": LINE,
    "grid.alpha": 0.7,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,
}
FEW_GAMES = 4
"""Largest number of games for which each game gets a panel with the names of the published methods."""


def styles(summary: Summary) -> dict[str, tuple[str, str]]:
    """Return the colour and the line style of every experiment."""
    looks = [(color, dash) for dash in DASHES for color in COLORS]
    return dict(zip(summary.experiments, cycle(looks), strict=False))


def curve_panels(summary: Summary) -> list[str]:
    """Return the panels of learning curves: "" for all games together, and the id of each game."""
    return [*([""] if summary.overall_curves else []), *summary.games]


def draw_curves(axes: Axes, summary: Summary, game: str) -> None:
    """Draw the learning curves of a game with its single runs behind them, or, for "", of all games together."""
    curves: dict[str, Curve] = (
        {name: summary.curves[name, game] for name in summary.experiments if (name, game) in summary.curves}
        if game
        else summary.overall_curves
    )
    for name, (steps, (value, low, high), runs) in curves.items():
        color, dash = styles(summary)[name]
        marker = "o" if len(steps) < 2 else None
        for run in runs if game else ():
            axes.plot(run.steps, run.scores, color=color, alpha=0.3, lw=0.7, marker=marker, ms=3)
        axes.fill_between(steps, low, high, color=color, alpha=0.18, lw=0)
        axes.plot(steps, value, dash, color=color, lw=1.8, label=name, marker=marker, ms=5)
    title = game or f"{len(summary.normalized_games)} games, human-normalised"
    axes.set_title(title, fontweight="normal" if game else "bold")
    axes.grid()
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(_thousands))


def draw_aggregate(axes: Axes, summary: Summary, statistic: str) -> None:
    """Draw a statistic of every experiment, with its interval."""
    axes.use_sticky_edges = False  # otherwise bars begin at the edge of the panel
    for row, name in enumerate(summary.experiments):
        value, low, high = summary.aggregates[name][statistic]
        color, _ = styles(summary)[name]
        if not np.isnan(low):
            axes.barh(row, high - low, left=low, color=color, alpha=0.35, height=0.55)
        axes.plot([value, value], [row - 0.275, row + 0.275], color=color, lw=2.5)
    axes.set_yticks(range(len(summary.experiments)), summary.experiments)
    axes.set_ylim(len(summary.experiments) - 0.4, -0.6)
    axes.set_title(statistic)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))


def draw_methods(axes: Axes, summary: Summary, game: str) -> None:
    """Draw mean returns in a game as bars from random play, of experiments and published methods, the best on top."""
    bars: list[tuple[float, str, str, Estimate | None]] = [
        (score, name, MUTED, None) for name in published.METHODS if not np.isnan(score := published.score(game, name))
    ]
    for name in summary.experiments:
        if (name, game) in summary.returns:
            own = summary.returns[name, game]["mean"]
            bars.append((float(own.value), name, styles(summary)[name][0], own))
    bars.sort(key=lambda bar: bar[0])
    random = published.score(game, "random")
    for row, (value, _, color, estimate) in enumerate(bars):
        axes.barh(row, value - random, left=random, color=color, alpha=0.45 if estimate is None else 0.9, height=0.7)
        if estimate is not None and not np.isnan(estimate.low):
            axes.plot([estimate.low, estimate.high], [row, row], color=INK, lw=1.2)
    axes.set_yticks(range(len(bars)), [name for _, name, _, _ in bars])
    for label, (_, _, _, estimate) in zip(axes.get_yticklabels(), bars, strict=True):
        label.set_fontweight("bold" if estimate is not None else "normal")
    axes.set_title(f"{game}, mean return")
    axes.set_ylim(-0.6, len(bars) - 0.4)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))


def draw_games(axes: Axes, summary: Summary) -> None:
    """Draw human-normalised means of all games: experiments as dots with intervals, published methods as ticks."""
    names = [game for game in summary.games if game in published.GAMES]
    methods = [name for name in published.METHODS if name not in published.REFERENCES]
    for row, game in enumerate(names):
        scores = published.normalize(game, np.array([published.score(game, method) for method in methods]))
        axes.plot(scores, np.full(len(scores), row), "|", color=MUTED, ms=9, label="published" if row == 0 else None)
        offsets = np.linspace(-0.45, 0.45, len(summary.experiments) + 2)[1:-1]
        for name, offset in zip(summary.experiments, offsets, strict=True):
            if (name, game) not in summary.returns:
                continue
            value, low, high = (published.normalize(game, bound) for bound in summary.returns[name, game]["mean"])
            color, _ = styles(summary)[name]
            axes.plot([low, high], [row + offset] * 2, color=color, lw=1.6)
            axes.plot(value, row + offset, "o", color=color, ms=4.5, label=name if row == 0 else None)
    axes.axvline(1, color=INK, lw=0.8, ls=":")
    axes.set_xscale("symlog", linthresh=1, linscale=1.2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("human-normalised score: 0 random, 1 human (linear up to 1, then logarithmic)")
    axes.grid()
    axes.tick_params(axis="y", length=0)


def sheets(summary: Summary) -> dict[str, Figure]:
    """Return the figures that are saved as PNG files, by name."""
    with rc_context(STYLE):
        panels = curve_panels(summary)
        size = (3.2, 2.4) if len(panels) > 2 else (6.0, 3.6)
        found = {"curves": _grid(panels, 5, size, draw_curves, summary)}
        found["curves"].supxlabel("real agent steps", size=10)
        _legend(found["curves"], summary)
        if len(summary.normalized_games) > 1:
            height = 0.8 + 0.32 * len(summary.experiments)
            found["aggregates"] = _grid(list(STATISTICS), 4, (3.4, height), draw_aggregate, summary)
        names = beside(summary)
        if len(names) > FEW_GAMES:
            found["games"] = Figure(figsize=(8, 1.2 + 0.36 * len(names)), layout="constrained")
            draw_games(found["games"].add_subplot(), summary)
            _legend(found["games"], summary)
        elif names:
            found["games"] = _grid(names, 2, (4.6, 1 + 0.22 * 20), draw_methods, summary)
    return found


def beside(summary: Summary) -> list[str]:
    """Return the games that have published scores, if the runs are comparable with them."""
    return [game for game in summary.games if game in published.GAMES] if summary.is_comparable else []


def panel(draw, summary: Summary, *which: str, size: tuple[float, float]) -> Figure:
    """Return a figure of one panel.

    Args:
        draw: function that draws the panel, such as `draw_curves`.
        summary: statistics of the report.
        *which: further arguments of `draw`, such as a game.
        size: width and height of the figure in inches.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot(), summary, *which)
    return figure


def _grid(panels: Sequence[str], columns: int, size: tuple[float, float], draw, summary: Summary) -> Figure:
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(columns * size[0], rows * size[1] + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for which, one in zip(panels, axes, strict=False):
        draw(one, summary, which)
    for one in axes[len(panels) :]:
        one.remove()
    return figure


def _legend(figure: Figure, summary: Summary) -> None:
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    widest = max(map(len, handles), default=1)
    fitting = int(figure.get_figwidth() / (0.6 + 0.08 * widest))  # inches
    ncols = max(1, min(5, fitting, len(handles)))
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=ncols)


def _thousands(value: float, _: object = None) -> str:
    text = f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k" if abs(value) >= 1e3 else f"{value:g}"
    return text.replace("-", MINUS)
