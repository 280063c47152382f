"""Real steps between updates."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.ranks import gather, generator
from modules.errors import UserError
from pipelines.actors import RandomActor
from pipelines.progress import counter


class Collect(Callback):
    """Plays the datamodule's environments: `prefill` steps first, then a pinned number of steps per update.

    Steps are counted in the training lanes of one rank. It stands still where the datamodule reads an existing store.

    Args:
        prefill: real steps before the first update; no more than the store keeps.
        steps_per_update: real steps per update from then on, on average; 0 stops after the prefill.
    """

    def __init__(self, prefill: int, steps_per_update: float = 0.0) -> None:
        if prefill < 1 or steps_per_update < 0:
            raise UserError(f"collect needs prefill >= 1 and steps_per_update >= 0: got {prefill}, {steps_per_update}")
        self.prefill = prefill
        self.steps_per_update = steps_per_update
        self.actor_states: list[dict[str, Any] | None] = [None]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill the store up to where a run of so many updates should be, before the first batch is drawn."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not data.store.writable:
            return
        self.start = min(self.prefill, data.capacity)
        needed = data.num_envs * data.sequence_length
        if self.start < needed:
            raise UserError(
                f"a prefill of {self.start} steps is fewer than a window needs: {data.num_envs} environments times "
                f"{data.sequence_length} rows are {needed}"
            )
        self.actor = RandomActor(data.environment.num_actions, generator(trainer.global_rank, "actor"))
        restored = self.actor_states[trainer.global_rank % len(self.actor_states)]
        if restored is not None:
            self.actor.load_state_dict(restored)
        self._collect(trainer, show=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Catch up with the updates."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data.store.writable:
            self._collect(trainer)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("env_steps", float(data.env_steps), prog_bar=self.steps_per_update > 0, batch_size=1)

    def _collect(self, trainer: Trainer, show: bool = False) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        target = self.start + self.steps_per_update * trainer.global_step
        start = data.env_steps
        if start >= target:
            return
        with counter(f"playing {data.game}", target - start, "steps", show and trainer.is_global_zero) as advance:
            while data.env_steps < target:
                data.collector.step(self.actor)
                advance(data.num_envs)
                if trainer.received_sigterm:
                    raise SIGTERMException
        if data.collector.returns:
            self._log_returns(trainer, data.collector.returns)
            data.collector.returns.clear()

    def _log_returns(self, trainer: Trainer, returns: list[float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({"collect/return": float(np.mean(returns))}, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Keep every rank's actor."""
        return {"actors": gather(self.actor.state_dict() if hasattr(self, "actor") else None)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember them until the run starts."""
        self.actor_states = state_dict["actors"]
