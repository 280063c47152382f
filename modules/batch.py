"""The batch type of all learners; only this module shifts rows by one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Windows of real or dreamed rows. All fields are (B, T, ...).

    Row t holds the observation o_t, the action a_t chosen at o_t, and the reward and continuation that a_t led to. Real
    rows have an observation, dreamed rows have a state. A dream of H steps has H + 1 rows; its last row holds only the
    final state.
    """

    action: Tensor
    """(B, T) int64: a_t, chosen at o_t. The environment never executes it where is_last."""
    reward: Tensor
    """(B, T) float32: raw reward of a_t."""
    continuation: Tensor
    """(B, T) float32: 1 - terminated for real rows; for dreamed rows the probability that the episode goes on."""
    is_first: Tensor
    """(B, T) bool: o_t is the first observation of an episode."""
    is_last: Tensor
    """(B, T) bool: o_t is the last observation of an episode, by termination or truncation."""
    observation: Tensor | None = None
    """(B, T, stack * C, H, W) uint8 frame stacks, oldest first, or (B, T, D) float32 vectors."""
    state: Tensor | None = None
    """(B, T, *state_shape): states of a world model."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """Further outputs of the actor, stored with its actions: log_prob, value, search_policy, ..."""

    @property
    def weight(self) -> Tensor:
        """(B, T): importance weights of the rows of windows that were not drawn uniformly; otherwise ones."""
        return self.extras.get("weight", torch.ones_like(self.reward))

    @property
    def shape(self) -> torch.Size:
        """(B, T)."""
        return self.action.shape

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Apply a function to every tensor."""

        def apply(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: function(tensor) for key, tensor in value.items()}
            return None if value is None else function(value)

        return Batch(**{f.name: apply(getattr(self, f.name)) for f in dataclasses.fields(self)})

    def tensors(self) -> list[Tensor]:
        """Return every tensor, in the order of the fields."""
        fields = {**vars(self), **self.extras}
        return [value for value in fields.values() if isinstance(value, Tensor)]

    def __getitem__(self, index: Any) -> Batch:
        """Index the leading dimensions of every tensor: `batch[:, 3:]` holds the rows from 3 on."""
        return self.map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Move every tensor to a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def replace(self, **changes: Any) -> Batch:
        """Return a copy with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def segments(self, length: int) -> Batch:
        """Cut every window into segments of `length` rows; the first row of a segment repeats the last row before it.

        Returns:
            (B * S, length, ...) with S = (T - 1) // (length - 1), without the remaining rows.
        """
        steps = length - 1
        first = torch.arange((self.shape[1] - 1) // steps, device=self.action.device) * steps
        rows = first[:, None] + torch.arange(length, device=self.action.device)
        return self.map(lambda tensor: tensor[:, rows].flatten(0, 1))

    def previous_action(self) -> Tensor:
        """Return (B, T) int64: a_{t-1}, the action that led to o_t; 0 at episode starts and in the first row."""
        previous = torch.zeros_like(self.action)
        previous[:, 1:] = self.action[:, :-1]
        return previous.masked_fill(self.is_first, 0)

    def has_successor(self) -> Tensor:
        """Return (B, T - 1) bool: row t + 1 is the successor of row t (same episode, same run).

        False where o_t is the last observation of an episode. False also where a run was cut: o_{t+1} is then the first
        observation of an episode although is_last is not set at t.
        """
        return ~self.is_last[:, :-1] & ~self.is_first[:, 1:]


def push(stacked: Tensor | None, newest: Tensor, is_first: Tensor | None, num_frames: int) -> Tensor:
    """Append the newest frame to every stack and drop the oldest: the one-step version of `stack`.

    Args:
        stacked: (B, num_frames * C, ...) stacks, oldest frame first; None before the first frame.
        newest: (B, C, ...) newest frames.
        is_first: (B,) bool: the frame starts an episode and fills its whole stack; None if no frame does.
        num_frames: frames in a stack.

    Returns:
        (B, num_frames * C, ...)
    """
    if num_frames == 1:
        return newest
    repeated = newest.repeat(1, num_frames, *[1] * (newest.ndim - 2))
    if stacked is None:
        return repeated
    rolled = torch.cat([stacked[:, newest.shape[1] :], newest], dim=1)
    return rolled if is_first is None else torch.where(is_first.view(-1, *[1] * (newest.ndim - 1)), repeated, rolled)


def stack(frames: Tensor, is_first: Tensor, num_frames: int) -> Tensor:
    """Stack each frame on the frames before it; the first frame of an episode stands in for missing ones.

    Args:
        frames: (B, T, C, H, W) frames in order of time.
        is_first: (B, T) bool: the frame starts an episode. The first row of a window always counts as a start.
        num_frames: frames in a stack.

    Returns:
        (B, T, num_frames * C, H, W), oldest frame first.
    """
    if num_frames == 1:
        return frames
    batch_size, length = is_first.shape
    row = torch.arange(length, device=frames.device).expand(batch_size, length)
    episode_start = torch.where(is_first, row, 0).cummax(dim=1).values
    offsets = torch.arange(num_frames - 1, -1, -1, device=frames.device)
    index = (row[..., None] - offsets).maximum(episode_start[..., None])
    stacked = frames[torch.arange(batch_size, device=frames.device)[:, None, None], index]
    return stacked.flatten(2, 3)
