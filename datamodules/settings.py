"""What every datamodule of replayed experience is told in the same words: who plays, what is drawn, what is kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from datamodules.replay.priorities import Prioritised
from modules.errors import UserError


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
        _check_least("envs", self, 1, ["training"])
        _check_least("envs", self, 0, ["validation"])


@dataclass(frozen=True)
class Sampling:
    """Windows of rows that batches are made of.

    Args:
        batch_size: windows in a batch, per rank.
        sequence_length: rows of a window.
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
        _check_least("sampling", self, 1, ["batch_size", "validation_batches"])
        _check_least("sampling", self, 2, ["sequence_length"], ", a row and the one after it")
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
        _check_least("storage", self, 1, ["capacity"])


def _check_least(group: str, settings: Any, least: int, names: Iterable[str], why: str = "") -> None:
    for name in names:
        if (value := getattr(settings, name)) < least:
            raise UserError(f"data.{group}.{name} must be at least {least}{why}: got {value}")
