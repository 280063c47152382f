"""Makes EarlyStopping and ModelCheckpoint follow figures that are measured between the ends of epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from modules.errors import UserError, nearest


class Monitors:
    """The EarlyStopping and ModelCheckpoint callbacks of a run that monitor figures of `Evaluate` or its like.

    By themselves they look at the end of every epoch or validation, where a figure may be missing, or measured before
    and for other weights. Here they look exactly once after every measurement. A checkpoint therefore holds the
    weights that earned its score, and the patience of EarlyStopping counts measurements.

    Args:
        trainer: the Trainer of the run.
        names: names of the figures, with a common prefix: evaluate/return.

    Raises:
        UserError: a callback monitors a figure of this prefix that does not exist.
    """

    def __init__(self, trainer: Trainer, names: Sequence[str]) -> None:
        prefix = names[0].partition("/")[0] + "/"
        self.callbacks = [
            each
            for each in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(each, EarlyStopping | ModelCheckpoint) and (each.monitor or "").startswith(prefix)
        ]
        for each in self.callbacks:
            if each.monitor not in names:
                raise UserError(
                    f"{type(each).__name__} monitors {each.monitor}, which no callback measures: the nearest is "
                    f"{nearest(str(each.monitor), names)}"
                )
            for hook in ("on_train_batch_end", "on_train_epoch_end", "on_validation_end"):
                vars(each)[hook] = _nothing
            if isinstance(each, ModelCheckpoint):
                vars(each)["on_train_batch_end"] = self._keep
        self.due: list[ModelCheckpoint] = []
        """Those that have not looked at the newest figures yet."""

    def show(self, trainer: Trainer, figures: Mapping[str, float]) -> None:
        """Show new figures, equal on every rank: EarlyStopping decides now, ModelCheckpoint saves after the update."""
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in figures.items()})
        for callback in self.callbacks:
            if isinstance(callback, EarlyStopping):
                callback._run_early_stopping_check(trainer)
        self.due = [each for each in self.callbacks if isinstance(each, ModelCheckpoint)]

    def _keep(self, trainer: Trainer, *args: Any) -> None:
        """Save new figures' weights at the first call; Lightning calls it after every other callback's hook."""
        for callback in self.due:
            candidates = callback._monitor_candidates(trainer)
            callback._save_topk_checkpoint(trainer, candidates)
            callback._save_last_checkpoint(trainer, candidates)
        self.due = []


def _nothing(*args: Any) -> None:
    """Do nothing, in place of a callback's own hook."""
