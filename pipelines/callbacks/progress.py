"""The completed share of a run, which schedules follow, and its last update."""

from __future__ import annotations

from fractions import Fraction

from lightning import Trainer
from lightning.pytorch.callbacks import Timer


def share_done(trainer: Trainer, updates: int) -> Fraction:
    """Return the completed share of a run after `updates` updates, from 0 to 1.

    A run ends at trainer.max_steps, at trainer.max_epochs or after trainer.max_time, whichever comes first.

    Args:
        trainer: the Trainer of the run.
        updates: number of updates; a number in the future is allowed, but the elapsed time is always the present one.
    """
    last = last_update(trainer)
    shares = [Fraction(0) if last is None else Fraction(updates, last)]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (remaining := callback.time_remaining()) is not None:
            elapsed = callback.time_elapsed()
            shares.append(Fraction(elapsed / max(elapsed + remaining, 1e-9)))
    return min(max(shares), Fraction(1))


def last_update(trainer: Trainer) -> int | None:
    """Return the number of updates at which trainer.max_steps or trainer.max_epochs ends a run; None without either."""
    ends = [trainer.max_steps] if trainer.max_steps > 0 else []
    epochs, batches = trainer.max_epochs, trainer.limit_train_batches
    if epochs is not None and epochs > 0 and isinstance(batches, int) and batches > 0:
        per_epoch = -(-batches // trainer.accumulate_grad_batches)  # the last batch of an epoch always makes an update
        ends.append(epochs * per_epoch)
    return min(ends, default=None)
