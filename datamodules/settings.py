"""Settings that all datamodules share: environments, sampling and storage."""

from __future__ import annotations

from dataclasses import dataclass

from datamodules.replay.priorities import Prioritised
from modules.errors import UserError, check_range


@dataclass(frozen=True)
class Envs:
    """Numbers of parallel environments per rank.

    Args:
        training: number of environments per rank whose experience is used for training.
        validation: number of further environments per rank whose experience is held out; 0 holds out nothing.
    """

    training: int = 1
    validation: int = 0

    def __post_init__(self) -> None:
        check_range("data.envs.training", self.training, 1)
        check_range("data.envs.validation", self.validation, 0)


@dataclass(frozen=True)
class ModelSampling:
    """Settings of the windows that only the world model learns from.

    Args:
        batch_size: number of windows in a batch of the world model, per rank.
        sequence_length: number of rows of a window of the world model, at least 2.
        events: fraction of the world model's windows that are drawn around rare rows, those that bring a reward or end
            an episode; their importance weights keep what is learned unbiased. 0 draws all windows alike.
    """

    batch_size: int = 16
    sequence_length: int = 16
    events: float = 0.0

    def __post_init__(self) -> None:
        check_range("data.sampling.world_model.batch_size", self.batch_size, 1)
        check_range("data.sampling.world_model.sequence_length", self.sequence_length, 2)
        if not 0 <= self.events < 1:
            raise UserError(f"data.sampling.world_model.events must be at least 0 and less than 1: got {self.events}")


@dataclass(frozen=True)
class Sampling:
    """Settings of the windows of rows that batches consist of.

    Args:
        batch_size: number of windows in a batch, per rank.
        sequence_length: number of rows of a window, at least 2.
        cross_episodes: let windows cross the ends of episodes; models mask rows without a successor.
        recent: number of newest rows per environment that training windows are drawn from; null draws from all rows.
            A value equal to `sequence_length` draws only the newest window, for on-policy learning.
        prioritised: settings of prioritised replay for training windows; null draws uniformly.
        events: fraction of the training windows that are drawn around rare rows, those that bring a reward or end an
            episode; their importance weights keep what is learned unbiased. 0 draws all windows alike.
        validation_batches: number of held-out batches per validation, which also limits the windows of pictures and
            reports.
        world_model: settings of further windows, which the world model learns from while the policy learns from those
            above; null lets both learn from the same windows.
    """

    batch_size: int = 16
    sequence_length: int = 16
    cross_episodes: bool = True
    recent: int | None = None
    prioritised: Prioritised | None = None
    events: float = 0.0
    validation_batches: int = 16
    world_model: ModelSampling | None = None

    def __post_init__(self) -> None:
        check_range("data.sampling.batch_size", self.batch_size, 1)
        check_range("data.sampling.sequence_length", self.sequence_length, 2)
        check_range("data.sampling.validation_batches", self.validation_batches, 1)
        if not 0 <= self.events < 1:
            raise UserError(f"data.sampling.events must be at least 0 and less than 1: got {self.events}")
        if self.events and (self.prioritised or not self.cross_episodes):
            other = "prioritised" if self.prioritised else "cross_episodes: false"
            raise UserError(f"data.sampling.events and data.sampling.{other} cannot be combined: set one of them")
        if self.recent is not None and self.recent < self.sequence_length:
            raise UserError(
                f"data.sampling.recent must be at least data.sampling.sequence_length, {self.sequence_length} rows: "
                f"got {self.recent}"
            )

    @property
    def of_model(self) -> ModelSampling:
        """The windows that the world model learns from, which validation takes too."""
        return self.world_model or ModelSampling(self.batch_size, self.sequence_length, self.events)

    @property
    def longest(self) -> int:
        """The largest number of rows of a window."""
        return max(self.sequence_length, self.of_model.sequence_length)


@dataclass(frozen=True)
class Storage:
    """Settings of the rows that the store keeps.

    Args:
        capacity: number of training rows that the store keeps; new rows replace the oldest.
        extras: names of float32 columns that actors write beside their actions, such as log_prob and value.
        frames_on_device: keep a copy of all frames on the trainer's GPU and gather batches there; the option has no
            effect on the CPU.
    """

    capacity: int = 100_000
    extras: tuple[str, ...] = ()
    frames_on_device: bool = False

    def __post_init__(self) -> None:
        check_range("data.storage.capacity", self.capacity, 1)
