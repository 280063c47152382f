"""Turns refusals of the Trainer, its strategy and Lightning's callbacks into one line that names the key."""

from __future__ import annotations

import importlib
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from jsonargparse import Namespace
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Checkpoint,
    LearningRateFinder,
    ProgressBar,
    StochasticWeightAveraging,
    WeightAveraging,
)

from modules.errors import UserError, check_range
from pipelines.runs.checkpoints import OWN

UNSUITED: dict[type[Callback], str] = {
    WeightAveraging: "leaves averaged weights in the last checkpoint, which a run cannot go on from: leave it out",
    StochasticWeightAveraging: "leaves averaged weights in the last checkpoint, which a run cannot go on from: "
    "leave it out",
    LearningRateFinder: "needs one learning rate for everything, and every part here has its own: set each part's lr",
    BatchSizeFinder: "would play and learn before the run begins: set the batch size of the data",
}
"""Lightning's callbacks that do not work here, and the reason for each."""
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
CHECKS = ("lightning.pytorch.callbacks.", "lightning.pytorch.loops.", "lightning.pytorch.tuner.")
REFUSALS = (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError, KeyError)
"""Exceptions by which Lightning refuses a setting. Other exceptions, and these ones from other code, are bugs."""


@contextmanager
def refusing(settings: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turn Lightning's own refusals in the block into a UserError, and let all other exceptions pass.

    Args:
        settings: arguments of the Trainer, if the block makes the Trainer; the error names the first argument that the
            refusal mentions. None if the block runs the Trainer; then only exceptions of Lightning's callbacks, loops
            and tuner count as refusals.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(_line(error, settings)) from error
    except REFUSALS as error:
        module = _raised_in(error)
        if settings is None and module.startswith(CHECKS):
            raise UserError(_said(error)) from error
        if settings is not None and module.startswith("lightning."):
            raise UserError(_line(error, settings)) from error
        raise


def check(trainer: Trainer) -> None:
    """Raise a UserError if a Trainer has settings that no run supports, before the first step is played."""
    if trainer.precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision is {trainer.precision}: expected one of {', '.join(PRECISIONS)}, weights stay float32"
        )
    check_range("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, 1)
    check_range("trainer.log_every_n_steps", trainer.log_every_n_steps, 1)  # type: ignore[attr-defined]
    check_range("trainer.gradient_clip_val", trainer.gradient_clip_val, 0)
    check_range("trainer.limit_train_batches", trainer.limit_train_batches, 1)
    check_range("trainer.check_val_every_n_epoch", trainer.check_val_every_n_epoch, 1)
    if isinstance(trainer.val_check_interval, int | float):
        check_range("trainer.val_check_interval", trainer.val_check_interval, 0, above=True)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for kind, reason in UNSUITED.items():
            if isinstance(callback, kind):
                raise UserError(f"trainer.callbacks: {type(callback).__name__} {reason}")
    every, batches = trainer.val_check_interval, trainer.limit_train_batches
    if (
        isinstance(every, int)
        and isinstance(batches, int)
        and trainer.check_val_every_n_epoch is not None
        and every > batches
    ):
        raise UserError(
            f"trainer.val_check_interval is {every}: expected at most trainer.limit_train_batches, the {batches} "
            "updates of an epoch; or set trainer.check_val_every_n_epoch to null, so that all updates are counted"
        )


def check_nulls(config: Any, key: str = "", hints: Mapping[str, Any] | None = None) -> None:
    """Raise a UserError if a setting is null and its type forbids null, which the parser does not check for classes.

    Args:
        config: parsed configuration, or a part of it.
        key: key of that part, as on the command line.
        hints: types of the settings in that part, if it configures one of the project's classes.
    """
    if isinstance(config, list):
        for each in config:
            check_nulls(each, key)
    if not isinstance(config, Namespace):
        return
    path = str(config.get("class_path", ""))
    for name, value in vars(config).items():
        where = key if name == "init_args" else f"{key}.{name}".lstrip(".")
        hint = (hints or {}).get(name, Any)
        if value is None and hint is not Any and type(None) not in (hint, *get_args(hint)):
            raise UserError(f"{where} is null: expected {getattr(hint, '__name__', hint)}")
        if name == "init_args" and path.partition(".")[0] in OWN:
            module, _, made = path.rpartition(".")
            check_nulls(value, where, _hints(getattr(importlib.import_module(module), made)))
        else:
            parts = [part for part in (hint, *get_args(hint)) if is_dataclass(part)]
            check_nulls(value, where, _hints(parts[0]) if parts else None)


def _hints(made: Any) -> dict[str, Any]:
    """Return the types of a class's arguments, including the arguments of its parents."""
    found: dict[str, Any] = {}
    for parent in reversed(made.__mro__):
        if "__init__" in vars(parent) and parent.__module__.partition(".")[0] in OWN:
            found |= get_type_hints(parent.__init__)
    return found


def without_switched_off(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the Trainer's arguments without the callbacks that enable_progress_bar or enable_checkpointing forbid.

    configs/base.yaml has callbacks of both kinds.
    """
    switches = {"enable_progress_bar": ProgressBar, "enable_checkpointing": Checkpoint}
    off = tuple(kind for switch, kind in switches.items() if settings.get(switch) is False)
    return settings | {"callbacks": [each for each in settings["callbacks"] or [] if not isinstance(each, off)]}


def _line(error: Exception, settings: Mapping[str, Any] | None) -> str:
    said = _said(error)
    named = next((word for word in re.findall(r"\w+", said) if word in (settings or {})), None)
    return said if settings is None or named is None else f"trainer.{named} is {settings[named]}: {said}"


def _said(error: Exception) -> str:
    return " ".join(str(error).split())


def _raised_in(error: BaseException) -> str:
    """Return the name of the module that raised the exception."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""
