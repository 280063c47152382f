"""How much of a run is done, whatever ends it: what schedules follow."""

from __future__ import annotations

from fractions import Fraction

from lightning import Trainer
from lightning.pytorch.callbacks import Timer


def share_done(trainer: Trainer, updates: int) -> Fraction:
    """Return how much of a run is done after so many updates, from 0 to 1.

    A run ends at trainer.max_steps, at trainer.max_epochs or after trainer.max_time, whichever comes first.

    Args:
        trainer: the Trainer of the run.
        updates: number of updates that were made before; it may lie ahead, but time is taken as it is now.
    """
    shares = [Fraction(0)]
    if trainer.max_steps > 0:
        shares.append(Fraction(updates, trainer.max_steps))
    epochs, batches = trainer.max_epochs, trainer.limit_train_batches
    if epochs is not None and epochs > 0 and isinstance(batches, int) and batches > 0:
        per_epoch = -(-batches // trainer.accumulate_grad_batches)  # the last batch of an epoch always makes an update
        shares.append(Fraction(updates, epochs * per_epoch))
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (remaining := callback.time_remaining()) is not None:
            elapsed = callback.time_elapsed()
            shares.append(Fraction(elapsed / max(elapsed + remaining, 1e-9)))
    return min(max(shares), Fraction(1))
