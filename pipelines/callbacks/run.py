"""A run as its callbacks see it."""

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


@dataclass(frozen=True)
class Run:
    """What a callback may ask of the Trainer, typed: `run = Run(trainer)` at the start of a hook."""

    trainer: Trainer

    @property
    def learner(self) -> Learner:
        """The world model or the agent that is trained."""
        learner = self.trainer.lightning_module
        assert isinstance(learner, Learner), f"{type(learner).__name__} is no Learner"
        return learner

    @property
    def model(self) -> WorldModel:
        """The world model that is trained, by itself or as an agent's."""
        model: WorldModel = self.learner.world_model
        return model

    @property
    def data(self) -> ReplayData:
        """The experience that it learns from."""
        data: ReplayData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    @property
    def store(self) -> ReplayStore:
        """Where that lies."""
        assert self.data.store is not None
        return self.data.store

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return self.trainer.global_rank

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints for all."""
        return self.trainer.is_global_zero

    @property
    def updates(self) -> int:
        """Optimizer steps that were made."""
        return self.trainer.global_step

    @property
    def is_over(self) -> bool:
        """Whether the last update was made."""
        return self.updates == self.trainer.max_steps

    @property
    def real_steps(self) -> int:
        """Real steps of all ranks together that something was learned from."""
        return self.data.real_steps * self.trainer.world_size

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.trainer.default_root_dir)

    @property
    def command(self) -> str:
        """fit, validate, test or predict."""
        return str(self.trainer.state.fn.value) if self.trainer.state.fn else ""

    def logs_after(self, updates: int) -> bool:
        """Return whether the loggers write after so many updates."""
        return updates % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def log(self, figures: Mapping[str, float]) -> None:
        """Give figures of this moment to every logger."""
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(figures), step=self.updates)

    def log_pictures(self, name: str, paths: Sequence[Path]) -> None:
        """Give pictures to the loggers that take any."""
        for logger in self.wandb():
            logger.log_image(name, [str(path) for path in paths], step=self.updates)

    def wandb(self) -> list[WandbLogger]:
        """Return the loggers of Weights & Biases, which take pictures, films and tables."""
        return [logger for logger in self.trainer.loggers if isinstance(logger, WandbLogger)]

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context in which networks run as they do in a training step."""
        return self.trainer.precision_plugin.forward_context()
