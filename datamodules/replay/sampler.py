"""Sampling from a replay store: training windows, windows at episode starts, and validation windows."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.replay.events import Events
from datamodules.replay.priorities import Priorities
from datamodules.replay.store import ReplayStore
from datamodules.settings import ModelSampling, Sampling
from modules.batch import Batch
from modules.errors import UserError


class Sampler:
    """Draws windows of a store, uniformly or by priority, and keeps the generator and the priorities.

    Args:
        store: store whose rows are drawn.
        settings: settings of the windows that batches consist of.
        frame_stack: number of frames in an observation.
        generator: random generator of the draws.
    """

    def __init__(
        self, store: ReplayStore, settings: Sampling, frame_stack: int, generator: np.random.Generator
    ) -> None:
        self.store, self.settings, self.frame_stack, self.generator = store, settings, frame_stack, generator

    @cached_property
    def priorities(self) -> Priorities | None:
        """The priorities of training windows; None if windows are drawn uniformly."""
        settings = self.settings.prioritised
        return None if settings is None else Priorities(self.store, settings)

    @cached_property
    def events(self) -> Events:
        """The rows that bring a reward or end an episode."""
        return Events(self.store)

    def sample(
        self,
        batch_size: int | None = None,
        sequence_length: int | None = None,
        envs: Literal["training", "validation"] = "training",
        source: np.random.Generator | None = None,
        recent: int | None = None,
        events: float = 0.0,
    ) -> Batch:
        """Draw windows; arguments of None take the settings.

        Windows that are drawn by priority have further extras (B, T): `env` and `row` int64 locate a row in the store,
        `age` is its age in real steps, and `weight` is the importance weight of the window. Windows that are drawn
        around events have a `weight` too.

        Args:
            batch_size: number of windows.
            sequence_length: number of rows of a window.
            envs: environments to draw from, "training" or "validation".
            source: generator of the draws; None takes the sampler's generator.
            recent: number of last rows per environment to draw from; 0 draws from all rows. None takes the setting for
                training environments, and all rows for validation environments.
            events: fraction of the training windows that are drawn around events.
        """
        if recent is None and envs == "training":
            recent = self.settings.recent
        source = source or self.generator
        batch_size = batch_size or self.settings.batch_size
        sequence_length = sequence_length or self.settings.sequence_length
        if self.priorities is not None and envs == "training":
            return self._sample_prioritised(self.priorities, source, batch_size, sequence_length, recent)
        if events and envs == "training":
            return self._sample_around_events(source, batch_size, sequence_length, events, recent)
        return self.store.sample(
            source,
            batch_size,
            sequence_length,
            frame_stack=self.frame_stack,
            envs=envs,
            cross_episodes=self.settings.cross_episodes,
            recent=recent,
        )

    def sample_for_model(self, windows: ModelSampling) -> Batch:
        """Draw training windows that only the world model learns from, never by priority."""
        size, length = windows.batch_size, windows.sequence_length
        return self._sample_around_events(self.generator, size, length, windows.events, self.settings.recent)

    def _sample_around_events(
        self, source: np.random.Generator, batch_size: int, length: int, events: float, recent: int | None
    ) -> Batch:
        env, start, weight = self.events.draw(source, batch_size, length, events, recent)
        batch = self.store.gather(env, start, length, self.frame_stack)
        weights = torch.from_numpy(weight)[:, None].expand(batch.shape)
        return batch.replace(extras={**batch.extras, "weight": weights})

    def _sample_prioritised(
        self, priorities: Priorities, source: np.random.Generator, batch_size: int, length: int, recent: int | None
    ) -> Batch:
        env, start, weight = priorities.draw(source, batch_size, length, self.settings.cross_episodes, recent)
        batch = self.store.gather(env, start, length, self.frame_stack)
        row = torch.from_numpy(start)[:, None] + torch.arange(length)
        num_training_envs = self.store.num_envs - self.store.num_validation_envs
        found = {
            "env": torch.from_numpy(env)[:, None].expand(row.shape),
            "row": row,
            "age": num_training_envs * (self.store.rows - 1 - row).float(),
            "weight": torch.from_numpy(weight)[:, None].expand(row.shape),
        }
        return batch.replace(extras=batch.extras | found)

    def update_priorities(self, batch: Batch, priority: Tensor) -> None:
        """Set the priorities (B,) of the windows of a batch, which must have been drawn by priority."""
        assert self.priorities is not None
        env, row = (batch.extras[name][:, 0].cpu().numpy() for name in ("env", "row"))
        self.priorities.update(env, row, priority.detach().cpu().numpy())

    def episode_starts(self, num: int, sequence_length: int) -> Batch | None:
        """Draw up to `num` different training windows that begin with an episode; None if there are no such windows.

        The windows may cross the ends of episodes.
        """
        env, start = self.store.episode_starts(sequence_length)
        if len(env) == 0:
            return None
        pick = self.generator.choice(len(env), min(num, len(env)), replace=False)
        return self.store.gather(env[pick], start[pick], sequence_length, self.frame_stack)

    def validation_windows(self, sequence_length: int, num_windows: int) -> Batch:
        """Return up to `num_windows` held-out windows, evenly spaced in the store and independent of earlier draws.

        The windows may cross the ends of episodes, but no window begins with the last row of an episode. The windows
        are shorter than `sequence_length` if the store is.

        Raises:
            UserError: the store has no validation environments.
        """
        self.require_validation()
        sequence_length = min(sequence_length, self.store.rows - self.store.oldest)
        env, start = self.store.windows(sequence_length, "validation")
        num_windows = min(num_windows, self.settings.validation_batches * self.settings.of_model.batch_size)
        pick = np.linspace(0, len(env) - 1, min(2 * num_windows, len(env))).round().astype(np.int64)
        batch = self.store.gather(env[pick], start[pick], sequence_length, self.frame_stack)
        opens = (~batch.is_last[:, 0]).nonzero()[:, 0]
        return batch[opens[:: max(1, len(opens) // num_windows)][:num_windows]]

    def require_validation(self) -> None:
        """Raise a UserError if the store has no validation environments."""
        if self.store.num_validation_envs == 0:
            raise UserError(
                f"{self.store.path} has no validation environments: set data.envs.validation to at least 1 in a new run"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the generator and of the priorities."""
        state: dict[str, Any] = {"generator": self.generator.bit_generator.state}
        return state if self.priorities is None else state | {"priorities": self.priorities.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the generator and the priorities, after the store was cut back to the rows of the checkpoint."""
        self.generator.bit_generator.state = state["generator"]
        if self.priorities is not None and "priorities" in state:
            self.priorities.load_state_dict(state["priorities"])
