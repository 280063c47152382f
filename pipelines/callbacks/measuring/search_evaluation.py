"""What planning adds to a policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from modules.agent import world_model
from pipelines.acting.actors import SearchActor
from pipelines.callbacks.measuring.evaluate import Evaluate
from pipelines.evaluation.episodes import tell
from pipelines.evaluation.results import Evaluation
from pipelines.search.picture import draw_line, draw_tree, frames_of
from pipelines.search.search import Result, Search

TREE, LINE = "search_tree.png", "search_line.png"


class SearchEvaluation(Evaluate):
    """Lets a module play the same episodes twice, by its policy alone and by planning every move in its world model.

    It logs both returns and what the searches found, and writes search_tree.png and search_line.png: of the move on
    which the search changed the policy's mind most. It evaluates when `Evaluate` does and stands in its place: both
    evaluations are kept, and the one by search is the run's score.

    Args:
        search: how it plans.
        every: real steps, of all ranks together, between evaluations; 0 evaluates at the end alone.
        episodes: per evaluation and player.
        final_episodes: of the one at the end of training.
        greedy: the policy alone plays its likeliest action; false draws as in training.
        epsilon: probability of a random action of the policy alone.
        max_steps: agent steps after which an episode is given up; null plays it to its end.
    """

    search: Search

    def __init__(
        self,
        search: Search,
        every: int = 0,
        episodes: int = 5,
        final_episodes: int = 10,
        greedy: bool = True,
        epsilon: float = 0.0,
        max_steps: int | None = None,
    ) -> None:
        super().__init__(every, episodes, final_episodes, greedy, epsilon, search, max_steps)

    def evaluate(self, trainer: Trainer, module: LightningModule, episodes: int, final: bool = False) -> None:
        """Play twice, write the evaluations and pictures down, and log what planning adds."""
        if not trainer.is_global_zero:
            return
        raw = self.play(trainer, module, episodes, final)
        findings = Findings()
        planned = self.play(trainer, module, episodes, final, search=self.search, watch=findings.add)
        figures = findings.figures()
        shown = {"return": planned.score, "raw_return": raw.score, "return_gain": planned.score - raw.score} | figures
        self.figures = {f"search/{name}": float(value) for name, value in shown.items()}
        for logger in trainer.loggers:
            logger.log_metrics(self.figures, step=trainer.global_step)
        folder = Path(trainer.default_root_dir)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        meanings = data.description.get("action_meanings") or [str(action) for action in range(data.spec.num_actions)]
        with trainer.precision_plugin.forward_context():
            title = f"{data.name} after {planned.env_steps} real steps, {self.search}"
            findings.draw(folder, module, meanings, title)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                pictures = [str(folder / TREE), str(folder / LINE)]
                logger.log_image("search", pictures, step=trainer.global_step)
        if final:
            tell(planned, folder)
            console = Console()
            console.print(f"{raw.policy} policy | {planned.policy}", soft_wrap=True)
            console.print(table(raw, planned, figures))
            console.print(f"a tree and its principal line: {folder / TREE}, {folder / LINE}", soft_wrap=True)


class Findings:
    """What searches found, over the moves of episodes that were still going on."""

    def __init__(self) -> None:
        self.moves: list[np.ndarray] = []
        """(moves, 6) of the figures' columns."""
        self.rates: list[float] = []
        self.most = -1.0
        self.found: Result | None = None
        """The one that changed the policy most, and which of its roots."""
        self.root = 0

    def add(self, actor: SearchActor, playing: np.ndarray, seconds: float) -> None:
        """Take in a move (N,) of an actor."""
        found = actor.found
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
        self.rates.append(found.simulations.sum() / seconds)
        root = int(np.where(playing, change, -1).argmax())
        if change[root] > self.most:
            self.most, self.found, self.root = float(change[root]), found, root

    def figures(self) -> dict[str, float]:
        """Return their means; of the simulations per second, observing and both networks included, the median."""
        names = ("simulations", "depth", "entropy", "value_gain", "divergence", "changed_moves")
        means = np.concatenate(self.moves).mean(axis=0).tolist()
        return dict(zip(names, means, strict=True)) | {"simulations_per_second": float(np.median(self.rates))}

    def draw(self, folder: Path, module: LightningModule, meanings: Sequence[str], title: str) -> None:
        """Draw the search that changed the policy most."""
        assert self.found is not None
        frames = frames_of(world_model(module))
        tree = self.found.tree
        draw_tree(tree, folder / TREE, meanings, frames, self.root, title)
        draw_line(tree, folder / LINE, meanings, frames, self.root, f"{title}: the principal line")


def divergence(policy: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Return KL(policy || prior) of every row (N, A), in nats."""
    ratios = np.log(np.maximum(policy, 1e-30)) - np.log(np.maximum(prior, 1e-30))
    gain: np.ndarray = (policy * ratios).sum(axis=1)
    return gain


def table(raw: Evaluation, planned: Evaluation, figures: dict[str, float]) -> Table:
    """Return what planning added as a table."""
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
