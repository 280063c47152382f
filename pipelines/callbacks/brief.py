"""Evaluations that cost next to nothing."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer

from pipelines.callbacks.evaluate import Evaluate


class Brief(Callback):
    """Cuts every evaluation of the run short: what configs/debug.yaml adds, to see that everything works.

    Args:
        episodes: per evaluation, at most.
        max_steps: after which they are given up.
    """

    def __init__(self, episodes: int = 2, max_steps: int = 20) -> None:
        self.episodes = episodes
        self.max_steps = max_steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Change the settings of `Evaluate`."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Evaluate):
                callback.episodes = min(self.episodes, callback.episodes)
                callback.final_episodes = min(self.episodes, callback.final_episodes)
                callback.max_steps = self.max_steps
