"""A copy of a store's frames on a GPU, which gathers windows there instead of transferring them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from datamodules.replay.format import Head
from modules.errors import UserError


class DeviceFrames:
    """All observations of a store in the memory of a device, updated before every read.

    Args:
        observations: observations of the store, (num_envs, slots, *observation_shape).
        device: device that holds the copy.

    Raises:
        UserError: the device has too little memory left.
    """

    def __init__(self, observations: np.ndarray, device: torch.device) -> None:
        self.observations = observations
        envs, slots, *shape = observations.shape
        dtype = torch.from_numpy(observations[:1, :1]).dtype
        try:
            self.frames = torch.empty((envs, slots, *shape), dtype=dtype, device=device)
        except torch.OutOfMemoryError:
            size = observations.nbytes / 2**30
            raise UserError(f"the frames of the store take {size:.1f} GiB, more than is free on {device}") from None
        self.flat = self.frames.flatten(0, 1)
        self.rows, self.cuts = 0, 0

    def update(self, head: Head) -> None:
        """Copy the rows that were appended since the last update, or all rows after a cut."""
        begin = self.rows if head.cuts == self.cuts else 0
        slots = self.observations.shape[1]
        missing = np.arange(max(begin, head.oldest), head.rows) % slots
        # Neighbouring slots are copied together, in two pieces where the ring wraps.
        for chunk in np.split(missing, np.flatnonzero(np.diff(missing) != 1) + 1):
            if len(chunk):
                part = slice(chunk[0], chunk[-1] + 1)
                self.frames[:, part] = torch.from_numpy(self.observations[:, part].copy()).to(self.frames.device)
        self.rows, self.cuts = head.rows, head.cuts

    def take(self, index: np.ndarray, head: Head) -> Tensor:
        """Return frames (N, *observation_shape); `index` (N,) int64 is environment * slots + slot."""
        self.update(head)
        return self.flat.index_select(0, torch.from_numpy(index).to(self.flat.device))
