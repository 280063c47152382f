"""What every datamodule of replayed experience is told in the same words: who plays, what is drawn, what is kept."""

from __future__ import annotations

from dataclasses import dataclass

from datamodules.replay.priorities import Prioritised
from modules.errors import UserError, check_range


@dataclass(frozen=True)
class Envs:
    """Environments that are played side by side, per rank.

    Args:
        training: environments whose experience is learned from.
        validation: environments beside them whose experience is held out; 0 holds out nothing.
    """

    training: int = 1
    validation: int = 0

    def __post_init__(self) -> None:
        check_range("data.envs.training", self.training, 1)
        check_range("data.envs.validation", self.validation, 0)


@dataclass(frozen=True)
class Sampling:
    """Windows of rows that batches are made of.

    Args:
        batch_size: windows in a batch, per rank.
        sequence_length: rows of a window, at least a row and the one after it.
        cross_episodes: let windows cross the ends of episodes; models mask what does not follow.
        recent: number of newest rows of every environment that training windows are drawn from; null draws from all.
            With `sequence_length` only the newest rows are drawn, for on-policy learning.
        prioritised: draw training windows by what they have to teach; null draws uniformly.
        validation_batches: held-out batches per validation; no picture or report takes more windows than these hold.
    """

    batch_size: int = 16
    sequence_length: int = 16
    cross_episodes: bool = True
    recent: int | None = None
    prioritised: Prioritised | None = None
    validation_batches: int = 16

    def __post_init__(self) -> None:
        check_range("data.sampling.batch_size", self.batch_size, 1)
        check_range("data.sampling.sequence_length", self.sequence_length, 2)
        check_range("data.sampling.validation_batches", self.validation_batches, 1)
        if self.recent is not None and self.recent < self.sequence_length:
            raise UserError(
                f"data.sampling.recent must be at least data.sampling.sequence_length, {self.sequence_length} rows: "
                f"got {self.recent}"
            )


@dataclass(frozen=True)
class Storage:
    """Rows that the store keeps.

    Args:
        capacity: training rows that the store keeps; the oldest make room for new ones.
        extras: float32 columns that actors leave beside their actions, such as log_prob and value.
        frames_on_device: keep a copy of all frames on the trainer's GPU and gather them there; on the CPU, nothing.
    """

    capacity: int = 100_000
    extras: tuple[str, ...] = ()
    frames_on_device: bool = False

    def __post_init__(self) -> None:
        check_range("data.storage.capacity", self.capacity, 1)
