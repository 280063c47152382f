"""Evaluations, searches and evolutions that cost next to nothing."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer

from pipelines.acting.play import Play
from pipelines.callbacks.dreaming.evolve import Evolve
from pipelines.callbacks.measuring.evaluate import Evaluate
from pipelines.search.search import Search


class DebugLimits(Callback):
    """Cuts every evaluation, search and evolution short: what configs/debug.yaml adds, to see that everything works.

    Args:
        episodes: per evaluation, and generations per round of an evolution, at most.
        max_steps: after which they are given up.
        simulations: per search, at most.
    """

    def __init__(self, episodes: int = 2, max_steps: int = 20, simulations: int = 4) -> None:
        self.episodes = episodes
        self.max_steps = max_steps
        self.simulations = simulations

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Change the settings of `Evaluate`, of `Evolve`, and of all that searches."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            search, actor = getattr(callback, "search", None), getattr(callback, "actor", None)
            if isinstance(search, Search):
                callback.search = search.limited(min(self.simulations, search.stop.simulations or self.simulations))
            if isinstance(actor, Play):
                callback.actor = actor.limited(self.simulations)
            if isinstance(callback, Evaluate):
                callback.episodes = min(self.episodes, callback.episodes)
                callback.final_episodes = min(self.episodes, callback.final_episodes)
                callback.max_steps = self.max_steps
            if isinstance(callback, Evolve):
                callback.shorten(self.episodes, self.max_steps)
