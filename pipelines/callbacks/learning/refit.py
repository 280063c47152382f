"""The callback that periodically calls `WorldModel.refit` (normalisers, elites, palettes)."""

from __future__ import annotations

from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer

from modules.errors import UserError
from pipelines.callbacks.run import Run


class Refit(Callback):
    """Calls the world model's `refit` on replayed rows before the first update, and every `every` updates.

    Args:
        num_windows: number of windows of `sequence_length` rows that the fit uses.
        sequence_length: rows of a window.
        every: updates between two fits; "round" fits at the start of every round of an agent, null fits once.
    """

    def __init__(
        self, num_windows: int = 256, sequence_length: int = 2, every: int | Literal["round"] | None = None
    ) -> None:
        if isinstance(every, int) and every < 1:
            raise UserError(f"refit.every must be at least 1 update, round, or null to fit once: got {every}")
        self.num_windows = num_windows
        self.sequence_length = sequence_length
        self.every = every

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit palettes, normalisers and the like of a new model; a restored model keeps its own."""
        if trainer.global_step == 0:
            self._refit(Run(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Fit palettes, normalisers and the like again when it is due."""
        run = Run(trainer)
        if self.every == "round":
            due = run.learner.rounds.ends(run.updates)
        else:
            due = self.every is not None and run.updates % self.every == 0
        if due:
            self._refit(run)

    def _refit(self, run: Run) -> None:
        data, learner = run.data, run.learner
        batch = data.sample(self.num_windows, self.sequence_length).to(learner.device)
        validation_windows = None
        if run.store.num_validation_envs:
            validation_windows = data.validation_windows(self.sequence_length, self.num_windows).to(learner.device)
        learner.world_model.refit(batch, validation_windows)
