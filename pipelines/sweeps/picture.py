"""Draws all trials of a sweep as parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Line
from matplotlib.ticker import LogLocator, MaxNLocator

from pipelines.evaluation.report.figures import INK, MUTED, STYLE
from pipelines.sweeps.sweep_file import Sweep
from pipelines.sweeps.trials import Result

SPREAD = 0.03
"""Largest shift, as a fraction of the axis, between lines through one choice; better trials are higher."""


@dataclass(frozen=True)
class Coordinate:
    """A vertical axis: `place` maps a value to its height from 0 to 1; ticks are (height, label)."""

    title: str
    place: Callable[[Any], float]
    ticks: list[tuple[float, str]]
    is_choice: bool


def draw(sweep: Sweep, results: Sequence[Result], path: Path) -> None:
    """Draw a line through the parameters of every trial that has a value, coloured by its metric.

    The lines of trials that were stopped early are dashed. Constant parameters have no axis.

    Args:
        sweep: sweep that produced the results.
        results: results of the trials, the best first.
        path: path of the PNG.
    """
    measured = [result for result in results if result.value is not None and result.state in ("complete", "pruned")]
    if not measured:
        return
    axes_of = [p for p in sweep.parameters if len(p.choices) != 1]
    values = [float(result.value) for result in measured if result.value is not None]
    coordinates = [
        _choices(p.name, p.choices) if p.choices else _numbers(p.name, p.low, p.high, p.log, p.step) for p in axes_of
    ]
    coordinates.append(_numbers(sweep.metric, *_limits(values)))
    rows = [[*(result.parameters[p.name] for p in axes_of), result.value] for result in measured]
    colors = colormaps["viridis" if sweep.goal == "maximize" else "viridis_r"].with_extremes()
    norm = Normalize(*_limits(values))
    with rc_context(STYLE):
        figure = Figure(figsize=(1.5 + 1.75 * len(coordinates), 5.0), layout="constrained")
        axes = figure.add_subplot()
        for column, coordinate in enumerate(coordinates):
            _upright(axes, column, coordinate)
        # The best trials are drawn last, on top of the others.
        for rank in reversed(range(len(rows))):
            heights = [c.place(v) for c, v in zip(coordinates, rows[rank], strict=True)]
            shift = SPREAD * (1 - 2 * rank / max(1, len(rows) - 1))
            heights = [h + shift * c.is_choice for c, h in zip(coordinates, heights, strict=True)]
            _line(axes, heights, colors(norm(values[rank])), rank == 0, measured[rank].state == "pruned")
        axes.set_xlim(-0.35, len(coordinates) - 0.65)
        axes.set_ylim(-0.06, 1.06)
        axes.set_axis_off()
        figure.colorbar(ScalarMappable(norm, colors), ax=axes, label=sweep.metric, fraction=0.03, pad=0.02)
        stopped = sum(result.state == "pruned" for result in measured)
        note = f", {stopped} of them stopped early (dashed)" if stopped else ""
        axes.set_title(f"{sweep.path.stem}: {len(measured)} trials{note}; the best is bold", pad=34)
        figure.savefig(path, dpi=130)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _choices(name: str, choices: Sequence[Any]) -> Coordinate:
    names = [str(choice) for choice in choices]
    heights = np.linspace(0.08, 0.92, len(names))
    labels = [Path(text).stem if text.endswith(".yaml") else text for text in names]
    places = dict(zip(names, map(float, heights), strict=True))
    return Coordinate(name, lambda value: places[str(value)], list(zip(places.values(), labels, strict=True)), True)


def _numbers(name: str, low: float, high: float, log: bool = False, step: float | None = None) -> Coordinate:
    def place(value: float) -> float:
        if low == high:
            return 0.5
        if log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    if log:
        found = LogLocator(subs=(1.0,) if high / low > 30 else (1.0, 2.0, 5.0)).tick_values(low, high)
    else:
        found = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=isinstance(step, int)).tick_values(low, high)
    inside = [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)] or [low, high]
    return Coordinate(name, place, [(place(tick), f"{tick:g}") for tick in inside], False)


def _upright(axes: Axes, column: int, coordinate: Coordinate) -> None:
    axes.plot([column, column], [0, 1], color=MUTED, lw=1, zorder=1)
    for height, label in coordinate.ticks:
        axes.plot([column - 0.03, column], [height, height], color=MUTED, lw=1, zorder=1)
        background = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1}
        axes.text(
            column - 0.05, height, label, ha="right", va="center", fontsize=8, color=INK, zorder=4, bbox=background
        )
    title = coordinate.title.replace("init_args.", "")
    head, _, last = title.rpartition(".")
    axes.text(column, 1.05, f"{head}.\n{last}" if head else last, ha="center", va="bottom", fontsize=9, color=INK)


def _line(axes: Axes, heights: Sequence[float], color: Any, best: bool, pruned: bool) -> None:
    # The line is horizontal where it crosses an axis, so that the eye can follow it to the next axis.
    points = [(0.0, heights[0])]
    codes = [Line.MOVETO]
    for column, (left, right) in enumerate(pairwise(heights)):
        points += [(column + 0.5, left), (column + 0.5, right), (column + 1.0, right)]
        codes += [Line.CURVE4] * 3
    style = {"lw": 3.0 if best else 1.3, "alpha": 1.0 if best else 0.75, "ls": (0, (3, 2)) if pruned else "-"}
    axes.add_patch(PathPatch(Line(points, codes), facecolor="none", edgecolor=color, zorder=3 if best else 2, **style))
