"""The one batch type, and the only place that shifts by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Windows of rows, real or dreamed. All fields are (B, T, ...).

    Row t is the observation o_t, the action a_t chosen there and what that action did. Real rows have an
    observation, dreamed ones a state; a dream of H steps has H + 1 rows, the last of which only closes it.
    """

    action: Tensor
    """(B, T) int64: a_t, chosen at o_t. Never executed where is_last."""
    reward: Tensor
    """(B, T) float32, raw: what a_t earned."""
    continuation: Tensor
    """(B, T) float32: 1 - terminated for real rows, for dreamed ones the probability that the episode goes on."""
    is_first: Tensor
    """(B, T) bool: o_t opens an episode."""
    is_last: Tensor
    """(B, T) bool: o_t closes an episode, by termination or by truncation."""
    observation: Tensor | None = None
    """(B, T, stack * C, H, W) uint8 frame stacks, oldest first, or (B, T, D) float32 vectors."""
    state: Tensor | None = None
    """(B, T, *state_shape): the states of a world model."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """What the actor left beside its actions: log_prob, value, search_policy, ..."""

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
        """Index every tensor by the leading dimensions: `batch[:, 3:]` are the rows from 3 on."""
        return self.map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Move every tensor to a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def replace(self, **changes: Any) -> Batch:
        """Return a copy with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def segments(self, length: int) -> Batch:
        """Cut every window into segments of `length` rows, each of which opens with the row that closes the one before.

        Returns:
            (B * S, length, ...) with S = (T - 1) // (length - 1); the rows that are left over are dropped.
        """
        steps = length - 1
        first = torch.arange((self.shape[1] - 1) // steps, device=self.action.device) * steps
        rows = first[:, None] + torch.arange(length, device=self.action.device)
        return self.map(lambda tensor: tensor[:, rows].flatten(0, 1))

    def previous_action(self) -> Tensor:
        """(B, T) int64: a_{t-1}, the action that led to o_t; 0 where o_t opens an episode and in the first row."""
        previous = torch.zeros_like(self.action)
        previous[:, 1:] = self.action[:, :-1]
        return previous.masked_fill(self.is_first, 0)

    def has_successor(self) -> Tensor:
        """(B, T - 1) bool: row t + 1 is what a_t led to.

        False where o_t closes an episode, and where a run was cut: o_{t+1} opens an episode that o_t did not close.
        """
        return ~self.is_last[:, :-1] & ~self.is_first[:, 1:]


def push(stacked: Tensor | None, newest: Tensor, is_first: Tensor | None, num_frames: int) -> Tensor:
    """Append the newest frame to every stack and drop the oldest: what `stack` does to a window, one row at a time.

    Args:
        stacked: (B, num_frames * C, ...), oldest frame first; None where nothing was seen yet.
        newest: (B, C, ...).
        is_first: (B,) bool: the frame opens an episode, and fills its stack; None where none does.
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
    """Stack each frame on the ones before it, repeating an episode's first frame where there are none.

    Args:
        frames: (B, T, C, H, W), in order.
        is_first: (B, T) bool: the frame opens an episode. The first row of a window counts as one.
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
