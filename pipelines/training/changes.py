"""What a run that goes on does otherwise than before: what can change does and is said, what cannot is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_only

from modules.errors import UserError
from pipelines.callbacks.run import Run

Change = tuple[str, Any, Any]
"""A key as it is given on the command line, what the checkpoint's configuration has, and what the new one has."""
MISSING = "nothing"
LOOSE = {"batch_size", "sequence_length", "cross_episodes", "validation_batches", "recent", "frames_on_device", "path"}
"""What may change of the data: how it is drawn, and where it lies. All else is how it was and is played."""
FIXED = {"class_path", "optimizer"}
"""What may not change of the model: a checkpoint keeps states that belong to it. Weights say themselves what fits."""
ONCE = ("config", "ckpt_path", "init_from", "init_fresh", "print_plan", "weights_only")
"""What says how a run begins, not what it does."""


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return the keys whose values differ between the resolved configurations of a checkpoint and of the run."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return [
        (key, old.get(key, MISSING), new.get(key, MISSING))
        for key in [*new, *(key for key in old if key not in new)]
        if old.get(key, MISSING) != new.get(key, MISSING) and key.partition(".")[0] not in ONCE
    ]


def check(found: list[Change], path: Path | str) -> None:
    """Raise a UserError where anything changed that a run cannot change on its way."""
    for key, before, now in found:
        part, last = key.partition(".")[0], key.rpartition(".")[2]
        played = part == "data" and last not in LOOSE
        if played or key == "seed_everything" or (part == "model" and last in FIXED):
            raise UserError(
                f"{path} was written with {key} {before}, not {now}: that cannot change on the way; "
                "--init_from begins a new run with its weights"
            )


def said(found: list[Change]) -> str:
    """Return changes as one line."""
    return ", ".join(f"{key} {before} -> {now}" for key, before, now in found)


class Resumed(Callback):
    """Lets the configuration rule over what a checkpoint put back, and the Trainer's counters stand where they stood.

    An optimizer's state brings the learning rates and weight decays of before, and a Lightning callback its patience.
    A checkpoint of a last update that ends an epoch makes Lightning count one update too many, and an empty epoch.
    """

    def __init__(self) -> None:
        self.patience: dict[EarlyStopping, int] = {}
        self.resumed = False
        self.said = ""
        """What changed since the checkpoint, to be printed once everything is restored."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember what callbacks were made with."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self.patience = {each: each.patience for each in callbacks if isinstance(each, EarlyStopping)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the learning rates and the weight decays that the configuration names, and the number of epochs."""
        self.resumed = trainer.ckpt_path is not None
        if not self.resumed:
            return
        for callback, patience in self.patience.items():
            callback.patience = patience
        if self.said:
            rank_zero_only(print)(f"dreamcade: changed since the checkpoint: {self.said}", file=sys.stderr)
        epochs: Any = trainer.fit_loop.epoch_progress
        epochs.current.completed, epochs.total.completed = epochs.current.processed, epochs.total.processed
        epoch = trainer.fit_loop.epoch_loop
        if epochs.current.processed == epochs.current.started and epoch._num_ready_batches_reached():
            epoch.restarting = False  # or Lightning would go on with the epoch that is over: an empty one
        learner = Run(trainer).learner
        policy = learner.trained_policy
        named = [*learner.world_model.parameter_groups(), *([] if policy is None else policy.parameter_groups())]
        (optimizer,), (schedule,) = trainer.optimizers, trainer.lr_scheduler_configs
        scheduler: Any = schedule.scheduler
        for number, (group, new) in enumerate(zip(optimizer.param_groups, named, strict=True)):
            group |= {name: value for name, value in new.items() if name not in ("params", "lr")}
            scheduler.base_lrs[number] = group["initial_lr"] = new["lr"]
            group["lr"] = new["lr"] * scheduler.lr_lambdas[number](scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let the next update be logged under its own number."""
        if self.resumed:
            self.resumed = False
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def _flat(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is set, by the key that the command line takes: without init_args, callbacks by their class."""
    if isinstance(config, Mapping) and config:
        for name, value in config.items():
            yield from _flat(value, key if name == "init_args" else f"{key}.{name}".lstrip("."))
    elif isinstance(config, list) and any(isinstance(each, Mapping) and "class_path" in each for each in config):
        seen: dict[str, int] = {}
        for each in config:
            name = str(each["class_path"]).rpartition(".")[2]
            seen[name] = seen.get(name, 0) + 1
            yield from _flat(each, f"{key}.{name}" + (f"_{seen[name]}" if seen[name] > 1 else ""))
    else:
        yield key, config
