"""Pictures of a search: the most visited part of its tree, and its principal line."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle, PathPatch, Rectangle
from matplotlib.path import Path as Curve

from datamodules.environments.emulator import AtariEmulators
from modules.imagination import evaluating
from modules.world_model import WorldModel
from pipelines.search import compiled
from pipelines.search.tree import Tree

Frames = Callable[[list[Any]], np.ndarray]
"""Maps the states of N nodes to pictures (N, H, W, 3) uint8."""
PRINCIPAL, OTHER, EARNED, LOST, QUIET = "#d9480f", "#adb5bd", "#2b8a3e", "#c92a2a", "#868e96"
VALUES = colormaps["viridis"]


@dataclass(frozen=True)
class Mark:
    """A node to draw, or an end of the game, which has no node."""

    parent: int
    """Index of the parent's mark in the list; -1 at the root."""
    node: int
    """Index of the node in the tree; -1 at an end of the game."""
    action: int
    visits: int
    value: float
    reward: float
    depth: int
    proven: bool
    principal: bool
    hidden: int
    """Number of nodes beneath this node that are not drawn."""


def frames_of(model: WorldModel) -> Frames | None:
    """Return a function that decodes a model's states to pictures, or None if the model decodes no pictures."""
    if "decode" not in model.capabilities or model.spec is None or len(model.spec.observation_shape) != 3:
        return None

    @torch.inference_mode()
    def frames(states: list[Any]) -> np.ndarray:
        with evaluating(model):
            pictures = model.decode(torch.stack(states)).float().clamp(0, 1)
        pixels = (pictures * 255).round().byte().movedim(1, -1).cpu().numpy()
        return pixels if pixels.shape[-1] == 3 else pixels[..., :1].repeat(3, axis=-1)

    return frames


def screens_of(environment: AtariEmulators) -> Frames:
    """Return a function that shows the clones of an emulator; they must keep their screens."""

    def frames(states: list[Any]) -> np.ndarray:
        pixels = environment.observe(states).transpose(0, 2, 3, 1)
        return pixels if pixels.shape[-1] == 3 else pixels.repeat(3, axis=-1)

    return frames


def chosen(tree: Tree, b: int, rows: int = 14, depth: int = 6) -> list[Mark]:
    """Return the marks of tree b to draw, parents before children: the principal line, then the most visited nodes.

    Args:
        tree: tree of a search.
        b: index of the root.
        rows: largest number of leaves; at most half of these hang on the root itself.
        depth: largest number of moves from the root.
    """
    marks = _marks(tree, b)
    children: dict[int, int] = {}
    kept: set[int] = set()
    leaves = 1

    def order(i: int) -> tuple[bool, bool, int, int]:
        mark = marks[i]
        return not mark.principal, mark.depth > 1, -mark.visits, i

    for i in sorted(range(len(marks)), key=order):
        mark = marks[i]
        more = mark.parent in children
        full = leaves >= rows or (mark.parent == 0 and leaves >= max(2, rows // 2) and not mark.principal)
        if mark.depth > depth or (mark.parent >= 0 and mark.parent not in kept) or (more and full):
            continue
        kept.add(i)
        leaves += more
        children[mark.parent] = children.get(mark.parent, 0) + 1
    places = {-1: -1} | {old: new for new, old in enumerate(sorted(kept))}
    hidden = dict.fromkeys(kept, 0)
    for i, mark in enumerate(marks):
        if i not in kept and mark.node >= 0:
            above = mark.parent
            while above not in kept:
                above = marks[above].parent
            hidden[above] += 1
    return [Mark(**(vars(marks[i]) | {"parent": places[marks[i].parent], "hidden": hidden[i]})) for i in sorted(kept)]


def _marks(tree: Tree, b: int) -> list[Mark]:
    """Return a mark for every node and for every visited end of the game, parents before children."""
    nodes = tree.nodes(b)
    places = {node.index: i for i, node in enumerate(nodes)} | {-1: -1}
    line = tree.principal(b)
    marks = [
        Mark(
            places[node.parent], node.index, node.action, node.visits, node.value, node.reward, node.depth,
            node.proven, node.index in line, 0,
        )
        for node in nodes
    ]  # fmt: skip
    for node in nodes:
        edges = tree.edges(b, node.index)
        for edge in edges[(edges["child"] == compiled.TERMINAL) & (edges["visits"] > 0)]:
            principal = node.index == line[-1] and edge["visits"] == edges["visits"].max()
            reward = float(edge["reward"])
            marks.append(
                Mark(
                    places[node.index], -1, int(edge["action"]), int(edge["visits"]), 0.0, reward, node.depth + 1,
                    bool(tree.settings[0]["prove"]), bool(principal), 0,
                )
            )  # fmt: skip
    return marks


def draw_tree(
    tree: Tree, path: Path, meanings: Sequence[str], frames: Frames | None = None, b: int = 0, title: str = ""
) -> None:
    """Draw the most visited part of tree b, from its root at the left.

    The label of an edge names the action, its visits and its reward; the thickness grows with the visits. The colour of
    a node shows its value. A node shows its frame if `frames` is given.

    Args:
        tree: tree of a search.
        path: path of the PNG.
        meanings: name of every action.
        frames: function that decodes states to pictures; None draws circles.
        b: index of the root.
        title: title of the picture.
    """
    marks = chosen(tree, b, rows=14 if frames is None else 10)
    rows = _rows(marks)
    pictures = _pictures(tree, b, [mark.node for mark in marks], frames)
    size = 0.26 if pictures is None else 0.8
    column, row = 1.45 + size, size + 0.36
    width = max(7.0, column * max(mark.depth for mark in marks) + size + 0.9)
    height = row * max(rows) + size + 1.35
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    places = [
        (0.4 + size / 2 + column * mark.depth, height - 0.9 - size / 2 - row * at)
        for mark, at in zip(marks, rows, strict=True)
    ]
    scale = _scale([mark.value for mark in marks if mark.node >= 0])
    for i, (mark, place) in enumerate(zip(marks, places, strict=True)):
        if mark.parent >= 0:
            share = mark.visits / max(1, marks[0].visits)
            _edge(axes, places[mark.parent], place, size, column, mark, share, meanings)
        _node(axes, place, size, mark, scale, None if pictures is None else pictures.get(i))
    drawn, everything = sum(mark.node >= 0 for mark in marks), int(tree.roots[b]["nodes"])
    axes.text(0.4, height - 0.27, title, fontsize=11, va="center", weight="bold")
    notes = [f"{drawn} of {everything} nodes" if drawn < everything else f"all {everything} nodes"]
    notes += [
        "on an edge: action: visits, reward",
        "below a node: value" + " for whoever moves there" * bool(tree.settings[0]["sign"] < 0),
    ]
    notes += ["(+n): nodes that are not drawn"] * (drawn < everything)
    notes += ["✓: proven"] * any(mark.proven for mark in marks)
    axes.text(0.4, height - 0.54, "; ".join(notes), fontsize=7.5, va="center", color=QUIET)
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    bar = figure.add_axes((1 - 1.7 / width, 1 - 0.4 / height, 1.3 / width, 0.1 / height))
    ends = [scale.vmin or 0.0, scale.vmax or 0.0]
    figure.colorbar(ScalarMappable(scale, VALUES), bar, orientation="horizontal", ticks=ends)
    bar.set_xticklabels([_number(end, scale) for end in ends])
    bar.tick_params(labelsize=7, length=2)
    bar.set_title("value", fontsize=7.5, pad=2)
    figure.savefig(path, dpi=140, facecolor="white")


def _rows(marks: list[Mark]) -> list[float]:
    """Return the row of every mark: the best child shares the row of its parent, and every leaf has its own row."""
    children: list[list[int]] = [[] for _ in marks]
    for i, mark in enumerate(marks):
        if mark.parent >= 0:
            children[mark.parent].append(i)
    rows = [0.0] * len(marks)
    taken = 0

    def place(i: int, row: int) -> None:
        nonlocal taken
        rows[i] = row
        order = sorted(children[i], key=lambda c: (not marks[c].principal, -marks[c].visits, marks[c].action))
        for number, child in enumerate(order):
            if number:
                taken += 1
            place(child, taken if number else row)

    place(0, 0)
    return rows


def _pictures(tree: Tree, b: int, nodes: list[int], frames: Frames | None) -> dict[int, np.ndarray] | None:
    """Return the frames of nodes by their index in the list; ends of the game have no frame."""
    if frames is None:
        return None
    shown = [i for i, node in enumerate(nodes) if node >= 0]
    return dict(zip(shown, frames([tree.state(b, nodes[i]) for i in shown]), strict=True))


def _edge(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    size: float,
    column: float,
    mark: Mark,
    share: float,
    meanings: Sequence[str],
) -> None:
    """Draw an edge that is horizontal under its label."""
    color = PRINCIPAL if mark.principal else OTHER
    left, right = start[0] + size / 2, end[0] - size / 2
    bend = right - 0.62 * (column - size)
    middle = (left + bend) / 2
    curve = Curve(
        [(left, start[1]), (middle, start[1]), (middle, end[1]), (bend, end[1]), (right, end[1])],
        [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4, Curve.LINETO],
    )
    thickness = 0.8 + 5 * share**0.5
    patch = PathPatch(curve, fill=False, edgecolor=color, linewidth=thickness, capstyle="round", zorder=1)
    patch.set_zorder(2 if mark.principal else 1)
    axes.add_patch(patch)
    label = f"{meanings[mark.action]}: {mark.visits}"
    above = end[1] + 0.04 + thickness / 144
    style = {"fontsize": 7.0, "va": "bottom", "zorder": 4}
    axes.text(bend, above, label, color=PRINCIPAL if mark.principal else "#343a40", **style)  # type: ignore[arg-type]
    if _earns(mark.reward):
        gain = EARNED if mark.reward > 0 else LOST
        below = end[1] - 0.04 - thickness / 144
        text = f"reward {_number(mark.reward, sign='+')}"
        axes.text(bend, below, text, color=gain, **(style | {"va": "top"}))  # type: ignore[arg-type]


def _node(
    axes: Axes, place: tuple[float, float], size: float, mark: Mark, scale: Normalize, picture: np.ndarray | None
) -> None:
    """Draw a node with its value and the number of nodes beneath it that are not drawn."""
    x, y = place
    half = size / 2
    if mark.node < 0:
        axes.text(x - half + 0.03, y, "end ✓" if mark.proven else "end", fontsize=7, va="center", color=QUIET)
        return
    color = VALUES(scale(mark.value))
    if picture is None:
        rim = (PRINCIPAL, 1.8) if mark.principal else (color, 1.0)
        axes.add_patch(Circle(place, half - 0.02, facecolor=color, edgecolor=rim[0], linewidth=rim[1], zorder=3))
    else:
        extent = (x - half, x + half, y - half, y + half)
        axes.imshow(picture, extent=extent, aspect="auto", interpolation="nearest", zorder=3)
        axes.add_patch(Rectangle((x - half, y - half), size, size, fill=False, edgecolor=color, linewidth=3, zorder=3))
    text = _value(mark, scale) + (f" (+{mark.hidden})" if mark.hidden else "")
    axes.text(x, y - half - 0.04, text, fontsize=7, ha="center", va="top", color="#343a40", zorder=4)


def draw_line(
    tree: Tree,
    path: Path,
    meanings: Sequence[str],
    frames: Frames | None = None,
    b: int = 0,
    title: str = "",
    most: int = 16,
) -> None:
    """Draw the principal line of tree b: its frames with action, reward, value and visits, or bars without frames.

    Args:
        tree: tree of a search.
        path: path of the PNG.
        meanings: name of every action.
        frames: function that decodes states to pictures; None draws bars.
        b: index of the root.
        title: title of the picture.
        most: largest number of nodes.
    """
    line = [mark for mark in _marks(tree, b) if mark.principal][:most]
    scale = _scale([mark.value for mark in line if mark.node >= 0])
    pictures = _pictures(tree, b, [mark.node for mark in line], frames)
    figure = _bars(line, scale, meanings) if pictures is None else _strip(line, pictures, scale, meanings)
    figure.text(0.5, 1 - 0.24 / figure.get_figheight(), title, fontsize=11, weight="bold", ha="center", va="center")
    figure.savefig(path, dpi=140, facecolor="white")


def _strip(line: list[Mark], pictures: dict[int, np.ndarray], scale: Normalize, meanings: Sequence[str]) -> Figure:
    """Return a figure of the frames side by side, at most eight per row."""
    columns = -(-len(line) // -(-len(line) // 8))
    width = max(6.0, 1.55 * columns + 0.15)
    height = 2.3 * -(-len(line) // columns) + 0.45
    figure = Figure(figsize=(width, height))
    shape = next(iter(pictures.values())).shape
    for i, mark in enumerate(line):
        left, top = 0.15 + 1.55 * (i % columns), height - 0.8 - 2.3 * (i // columns)
        axes = figure.add_axes((left / width, (top - 1.4) / height, 1.4 / width, 1.4 / height))
        axes.set_axis_off()
        axes.imshow(pictures.get(i, np.full(shape, 233, np.uint8)), interpolation="nearest", aspect="auto")
        if mark.node < 0:
            axes.text(0.5, 0.5, "end", transform=axes.transAxes, ha="center", va="center", color=QUIET)
        axes.set_title(f"→ {meanings[mark.action]}" if i else "now", fontsize=8.5, color=PRINCIPAL, pad=4)
        about = [(f"{mark.visits} visit{'s' * (mark.visits != 1)}", QUIET)]
        if mark.node >= 0:
            about.insert(0, (f"value {_value(mark, scale)}", "#343a40"))
        if i:
            about.insert(0, (f"reward {_number(mark.reward, sign='+')}", _colour(mark.reward)))
        for number, (text, color) in enumerate(about):
            axes.annotate(
                text, (0.5, 0), (0, -4 - 10.5 * number), "axes fraction", "offset points",
                ha="center", va="top", fontsize=8, color=color,
            )  # fmt: skip
    return figure


def _bars(line: list[Mark], scale: Normalize, meanings: Sequence[str]) -> Figure:
    """Return a figure of the rewards and values along the line."""
    figure = Figure(figsize=(max(6.0, 1.2 + 0.75 * len(line)), 4.0), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 0.9))  # type: ignore[union-attr,call-arg]
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.4])
    rewards = [mark.reward for mark in line[1:]]
    top.bar(np.arange(1, len(line)), rewards, color=[_colour(reward) for reward in rewards], width=0.55)
    top.set_ylabel("reward", fontsize=8)
    nodes = [(i, mark) for i, mark in enumerate(line) if mark.node >= 0]
    bottom.plot([i for i, _ in nodes], [mark.value for _, mark in nodes], "o-", color=PRINCIPAL, markersize=4)
    for i, mark in nodes:
        place = (0, 5)
        bottom.annotate(
            _value(mark, scale), (i, mark.value), place, textcoords="offset points", ha="center", fontsize=7
        )
    bottom.margins(y=0.25)
    bottom.set_ylabel("value", fontsize=8)
    names = ["now", *(meanings[mark.action] for mark in line[1:])]
    ends = ["" if mark.node >= 0 else "\nend" for mark in line]
    labels = [f"{name}\n{mark.visits}{end}" for name, mark, end in zip(names, line, ends, strict=True)]
    bottom.set_xticks(np.arange(len(line)), labels)
    for axes in (top, bottom):
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    bottom.set_xlabel("its states have no pictures: reward, value and visits of every move instead", fontsize=7.5)
    bottom.xaxis.label.set_color(QUIET)
    return figure


def _scale(values: list[float]) -> Normalize:
    low, high = min(values), max(values)
    return Normalize(low, high if high > low else low + 1)


def _value(mark: Mark, scale: Normalize) -> str:
    return _number(mark.value, scale) + (" ✓" if mark.proven else "")


def _earns(reward: float) -> bool:
    # A model's expected rewards are almost never exactly 0.
    return abs(reward) >= 0.05


def _colour(reward: float) -> str:
    if not _earns(reward):
        return QUIET
    return EARNED if reward > 0 else LOST


def _number(value: float, scale: Normalize | None = None, sign: str = "") -> str:
    """Format a number with enough digits to tell the values of a scale apart."""
    digits = 2
    if scale is not None and scale.vmin is not None and scale.vmax is not None:
        digits = min(4, max(0, 2 - math.floor(math.log10(scale.vmax - scale.vmin))))
    text = f"{value:{sign}.{digits}f}"
    return text.replace("-", "").replace("+", "") if float(text) == 0 else text
