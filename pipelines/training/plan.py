"""Prints the hooks of a run in order, with their docstrings: `dreamcade fit --config ... --print_plan`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

from lightning import Callback
from lightning.pytorch import LightningModule

MOMENTS: dict[str, tuple[str, ...]] = {
    "once, before the first update": ("setup", "on_fit_start", "on_train_start"),
    "every update, before the loss": ("on_train_batch_start",),
    "every update, the loss": ("training_step", "on_before_backward", "optimizer_step"),
    "every update, after the step": ("on_train_batch_end",),
    "every validation": ("validation_step", "on_validation_end"),
    "every checkpoint": ("on_save_checkpoint",),
    "once, after the last update": ("on_train_end", "on_fit_end"),
}
"""Moments of a run with their hooks, in the order in which Lightning calls the hooks."""


def plan(callbacks: Sequence[Callback], learner: LightningModule) -> str:
    """Return one line per hook of the callbacks and the learner, in the order in which the hooks run."""
    everyone: list[Callback | LightningModule] = [*callbacks, learner]
    lines = []
    for moment, hooks in MOMENTS.items():
        done = [line for hook in hooks for each in everyone for line in _said(each, hook)]
        if done:
            lines += [moment, *done]
    return "\n".join(lines)


def _said(each: Callback | LightningModule, hook: str) -> Iterator[str]:
    """Yield a line with the docstring of an object's hook, unless the hook is Lightning's empty one."""
    method = getattr(type(each), hook, None)
    if method is None or (method.__module__ or "").startswith("lightning."):
        return
    text = (inspect.getdoc(method) or "").partition("\n\n")[0].replace("\n", " ")
    yield f"  {type(each).__name__ + '.' + hook:<42} {text}"
