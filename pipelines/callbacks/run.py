"""Typed access of callbacks to the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import WandbLogger

from datamodules.replay.store import ReplayStore
from datamodules.replay_data import ReplayData
from modules.learner import Learner
from modules.world_model import WorldModel
from pipelines.callbacks.progress import last_update


@dataclass(frozen=True)
class Run:
    """Gives callbacks typed access to the Trainer: `run = Run(trainer)` at the start of a hook."""

    trainer: Trainer

    @property
    def learner(self) -> Learner:
        """The world model or the agent that is trained."""
        learner = self.trainer.lightning_module
        assert isinstance(learner, Learner), f"{type(learner).__name__} is no Learner"
        return learner

    @property
    def model(self) -> WorldModel:
        """The world model that is trained, alone or as part of an agent."""
        model: WorldModel = self.learner.world_model
        return model

    @property
    def data(self) -> ReplayData:
        """The datamodule that the learner learns from."""
        data: ReplayData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    @property
    def store(self) -> ReplayStore:
        """The replay store of the datamodule."""
        return self.data.store

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return self.trainer.global_rank

    @property
    def is_first(self) -> bool:
        """Whether this process has rank 0, which writes and prints for all ranks."""
        return self.trainer.is_global_zero

    @property
    def updates(self) -> int:
        """Number of optimizer steps so far."""
        return self.trainer.global_step

    @property
    def is_over(self) -> bool:
        """Whether no update follows: the run has made its last one, or time or EarlyStopping ends it here."""
        stopped = self.trainer.should_stop and self.trainer.fit_loop._can_stop_early
        return stopped or self.updates == last_update(self.trainer)

    @property
    def real_steps(self) -> int:
        """Number of real steps of all ranks together that the run has learned from."""
        return self.data.real_steps * self.trainer.world_size

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.trainer.default_root_dir)

    @property
    def command(self) -> str:
        """The running command: fit, validate, test or predict; empty if none runs."""
        return str(self.trainer.state.fn.value) if self.trainer.state.fn else ""

    def logs_after(self, updates: int) -> bool:
        """Return whether the loggers write after `updates` updates."""
        return updates % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def log(self, figures: Mapping[str, float]) -> None:
        """Send figures to every logger, at the present update."""
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(figures), step=self.updates)

    def log_pictures(self, name: str, paths: Sequence[Path]) -> None:
        """Send pictures to the loggers that accept pictures."""
        for logger in self.wandb():
            logger.log_image(name, [str(path) for path in paths], step=self.updates)

    def wandb(self) -> list[WandbLogger]:
        """Return the loggers of Weights & Biases, which accept pictures, films and tables."""
        return [logger for logger in self.trainer.loggers if isinstance(logger, WandbLogger)]

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context in which networks run as they do in a training step."""
        return self.trainer.precision_plugin.forward_context()
