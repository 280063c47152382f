"""Changed settings of a resumed run: allowed changes take effect and are printed, all others are refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities import rank_zero_only

from modules.errors import UserError
from pipelines.callbacks.run import Run

Change = tuple[str, Any, Any]
"""Key as on the command line, its value in the checkpoint's configuration, and its value in the new one."""
MISSING = "nothing"
LOOSE = {"batch_size", "sequence_length", "cross_episodes", "validation_batches", "recent", "frames_on_device", "path"}
"""Data settings that may change: how batches are drawn, and where the store lies. The others define how to play."""
FIXED = {"class_path", "optimizer"}
"""Model settings that may not change, because a checkpoint stores states for them. Loading checks the weights."""
ONCE = ("config", "ckpt_path", "init_from", "init_fresh", "print_plan", "weights_only")
"""Settings of a run's start, which are not compared."""


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return the changes from the resolved configuration of a checkpoint to the one of the run."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return [
        (key, old.get(key, MISSING), new.get(key, MISSING))
        for key in [*new, *(key for key in old if key not in new)]
        if old.get(key, MISSING) != new.get(key, MISSING) and key.partition(".")[0] not in ONCE
    ]


def check(found: list[Change], path: Path | str) -> None:
    """Raise a UserError if a setting changed that a resumed run may not change."""
    for key, before, now in found:
        part, last = key.partition(".")[0], key.rpartition(".")[2]
        played = part == "data" and last not in LOOSE
        if played or key == "seed_everything" or (part == "model" and last in FIXED):
            raise UserError(
                f"{path} was written with {key} {before}, not {now}: a resumed run cannot change this; "
                "--init_from begins a new run with its weights"
            )


def said(found: list[Change]) -> str:
    """Return the changes as one line."""
    return ", ".join(f"{key} {before} -> {now}" for key, before, now in found)


class Resumed(Callback):
    """Applies the configuration to the states that a checkpoint restored, and corrects the Trainer's counters.

    The restored optimizer has the old learning rates and weight decays; a restored EarlyStopping has its old patience.
    If the run ended within an epoch, Lightning counts the rest of it as an epoch of its own. If the checkpoint's last
    update ended an epoch, Lightning counts one update and one empty epoch too many.
    """

    def __init__(self) -> None:
        self.patience: dict[EarlyStopping, int] = {}
        self.resumed = False
        self.said = ""
        """Changes since the checkpoint, which are printed when everything is restored."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the configured patience of every EarlyStopping."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self.patience = {each: each.patience for each in callbacks if isinstance(each, EarlyStopping)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let the epoch go on within which the run of the checkpoint ended."""
        if trainer.state.fn != "fit":
            return
        loop = checkpoint["loops"]["fit_loop"]
        batches = loop["epoch_loop.batch_progress"]
        before = checkpoint.get("config", {}).get("trainer", {})
        limit = before.get("limit_train_batches", trainer.limit_train_batches)
        whole = batches["is_last_batch"] or (isinstance(limit, int) and batches["current"]["ready"] >= limit)
        for epochs in loop["epoch_progress"].values():
            if epochs["processed"] == epochs["started"] and not whole:
                epochs["processed"] = epochs["completed"] = epochs["started"] - 1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set every patience to the configuration's; a run that EarlyStopping ended goes on if its settings changed."""
        for callback, patience in self.patience.items():
            callback.patience = patience
            if "EarlyStopping" in self.said:
                callback.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            elif callback.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
                trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set learning rates and weight decays to the configuration's, and correct the number of epochs."""
        self.resumed = trainer.ckpt_path is not None
        if not self.resumed:
            return
        if self.said:
            rank_zero_only(print)(f"dreamcade: changed since the checkpoint: {self.said}", file=sys.stderr)
        epochs: Any = trainer.fit_loop.epoch_progress
        epochs.current.completed, epochs.total.completed = epochs.current.processed, epochs.total.processed
        if epochs.current.processed == epochs.current.started:
            trainer.fit_loop.epoch_loop.restarting = False  # else Lightning would go on with the finished epoch,
            trainer.fit_loop.reset_restart_stage()  # or not count the next one
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
        """Log the next update under its own number."""
        if self.resumed:
            self.resumed = False
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def _flat(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key and value, with keys as on the command line: without init_args, callbacks by their class."""
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
