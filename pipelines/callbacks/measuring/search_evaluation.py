"""The callback that compares a policy with planning by that policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from modules.world_model import WorldModel
from pipelines.acting.play import SearchPlay
from pipelines.callbacks.measuring.evaluate import Evaluate
from pipelines.callbacks.run import Run
from pipelines.evaluation.episodes import Move, tell
from pipelines.evaluation.results import Evaluation
from pipelines.search.picture import draw_line, draw_tree, frames_of
from pipelines.search.search import Result, Search

TREE, LINE = "search_tree.png", "search_line.png"
FIGURES = ("simulations", "depth", "entropy", "value_gain", "divergence", "changed_moves")
"""What is measured of every move."""
RATE = "simulations_per_second"


class SearchEvaluation(Evaluate):
    """Plays the same episodes twice: by the policy alone, and by planning every move in the world model.

    The callback logs both returns and the results of the searches. It writes search_tree.png and search_line.png for
    the move where the search changed the policy most. It replaces `Evaluate` and runs at the same times. The run keeps
    both evaluations, and the one by search is the run's score.

    Args:
        search: settings of the search.
        every: real steps of all ranks together between evaluations; 0 evaluates only at the end.
        episodes: number of episodes per evaluation and player.
        final_episodes: number of episodes per player of the evaluation at the end of training.
        greedy: play the likeliest action where the policy plays alone; false draws actions as in training.
        max_steps: agent steps after which an episode is stopped as unfinished; null plays it to its end.
    """

    def __init__(
        self,
        search: Search,
        every: int = 0,
        episodes: int = 5,
        final_episodes: int = 10,
        greedy: bool = True,
        max_steps: int | None = None,
    ) -> None:
        super().__init__(every, episodes, final_episodes, SearchPlay(search), greedy, max_steps)

    def names(self, run: Run) -> list[str]:
        """Return the names of the figures that callbacks can monitor."""
        return [f"search/{name}" for name in ("return", "raw_return", "return_gain", *FIGURES, RATE)]

    def evaluate(self, run: Run, episodes: int, final: bool = False) -> dict[str, float]:
        """Play twice, write the evaluations and pictures, and log both returns and the results of the searches."""
        if not run.is_first:
            return {}
        assert self.actor is not None
        raw = self.play(run, episodes, final)
        findings = Findings()
        planned = self.play(run, episodes, final, actor=self.actor, watch=findings.add)
        figures = findings.figures()
        shown = {"return": planned.score, "raw_return": raw.score, "return_gain": planned.score - raw.score} | figures
        logged = {f"search/{name}": float(value) for name, value in shown.items()}
        run.log(logged)
        data, folder = run.data, run.folder
        meanings = data.description.get("action_meanings") or [str(action) for action in range(data.spec.num_actions)]
        with run.precision():
            title = f"{data.name} after {planned.env_steps} real steps, {self.actor.describe(greedy=True)}"
            findings.draw(folder, run.model, meanings, title)
        run.log_pictures("search", [folder / TREE, folder / LINE])
        if final:
            tell(planned, folder)
            console = Console()
            console.print(f"{raw.policy} policy | {planned.policy}", soft_wrap=True)
            console.print(table(raw, planned, figures))
            console.print(f"a tree and its principal line: {folder / TREE}, {folder / LINE}", soft_wrap=True)
        return logged


class Findings:
    """Collects the results of searches, over the moves of unfinished episodes."""

    def __init__(self) -> None:
        self.moves: list[np.ndarray] = []
        """One array (unfinished episodes, 6) per move; its columns are FIGURES."""
        self.rates: list[float] = []
        self.most = -1.0
        self.found: Result | None = None
        """The search result that changed the policy most."""
        self.root = 0
        """Index of the root in `found` that changed the policy most."""

    def add(self, move: Move) -> None:
        """Add a move of a search actor."""
        found, playing = move.actor.found, move.counts
        assert found is not None
        change = divergence(found.policy, found.prior)
        columns = (
            found.simulations,
            found.depth,
            -(found.policy * np.log(np.maximum(found.policy, 1e-30))).sum(axis=1),
            found.value - found.network_value,
            change,
            found.action != found.prior.argmax(axis=1),
        )
        self.moves.append(np.stack(columns, axis=1)[playing])
        self.rates.append(found.simulations.sum() / move.seconds)
        root = int(np.where(playing, change, -1).argmax())
        if change[root] > self.most:
            self.most, self.found, self.root = float(change[root]), found, root

    def figures(self) -> dict[str, float]:
        """Return the means over moves, and the median of simulations per second.

        The time includes observing and both networks.
        """
        means = np.concatenate(self.moves).mean(axis=0).tolist()
        return dict(zip(FIGURES, means, strict=True)) | {RATE: float(np.median(self.rates))}

    def draw(self, folder: Path, model: WorldModel, meanings: Sequence[str], title: str) -> None:
        """Draw the search that changed the policy most."""
        assert self.found is not None
        frames = frames_of(model)
        tree = self.found.tree
        draw_tree(tree, folder / TREE, meanings, frames, self.root, title)
        draw_line(tree, folder / LINE, meanings, frames, self.root, f"{title}: the principal line")


def divergence(policy: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Return KL(policy || prior) of every row (N, A), in nats."""
    ratios = np.log(np.maximum(policy, 1e-30)) - np.log(np.maximum(prior, 1e-30))
    gain: np.ndarray = (policy * ratios).sum(axis=1)
    return gain


def table(raw: Evaluation, planned: Evaluation, figures: dict[str, float]) -> Table:
    """Return a table that compares the two evaluations."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    cells = {
        "return": f"{raw.score:.1f} | {planned.score:.1f}",
        "value gain": f"{figures['value_gain']:+.3f}",
        "moves changed": f"{figures['changed_moves']:.0%}",
        "entropy": f"{figures['entropy']:.2f}",
        "depth": f"{figures['depth']:.1f}",
        "simulations/s": f"{figures['simulations_per_second']:,.0f}",
    }
    for title in cells:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_row(*cells.values())
    return table
