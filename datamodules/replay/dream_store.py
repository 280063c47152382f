"""A store of dreamed experience on the model's device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from modules.batch import Batch


class DreamStore:
    """A ring buffer of dreams of one length.

    Every dream has the version of its model, since dreams of older models are less accurate.

    Args:
        capacity: number of dreams that are kept; new dreams replace the oldest.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.clear()

    def __len__(self) -> int:
        return len(self._order)

    @property
    def steps(self) -> int:
        """Number of transitions of a dream."""
        assert self._rows is not None
        return self._rows.shape[1] - 1

    def clear(self) -> None:
        """Remove all dreams."""
        self._rows: Batch | None = None
        self._order = np.empty(0, np.int64)  # slots in use, oldest first
        self._versions = np.empty(0, np.int64)

    def append(self, dreams: Batch, version: int) -> None:
        """Add the last `capacity` of the dreams (B, T), with the version of their model.

        Dreams of another length replace all earlier dreams.
        """
        dreams = dreams[-self.capacity :]
        if self._rows is None or self._rows.shape[1] != dreams.shape[1]:
            self.clear()
            self._rows = dreams.map(lambda tensor: tensor.new_empty((self.capacity, *tensor.shape[1:])))
        rows = self._rows
        num = dreams.shape[0]
        excess = max(0, len(self) + num - self.capacity)
        self._order, self._versions = self._order[excess:], self._versions[excess:]
        free = np.setdiff1d(np.arange(self.capacity), self._order)[:num]
        index = torch.from_numpy(free).to(dreams.action.device)
        for kept, new in zip(rows.tensors(), dreams.tensors(), strict=True):
            kept[index] = new
        self._order = np.concatenate([self._order, free])
        self._versions = np.concatenate([self._versions, np.full(num, version)])

    def drop(self, version: int) -> None:
        """Remove the dreams of models older than a version."""
        keep = self._versions >= version
        self._order, self._versions = self._order[keep], self._versions[keep]

    def state_dict(self) -> dict[str, Any]:
        """Return the dreams, oldest first, and the versions of their models."""
        rows = vars(self.gather(np.arange(len(self))).to("cpu")) if len(self) else None
        return {"rows": rows, "versions": torch.from_numpy(self._versions.copy())}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Replace all dreams by those of a `state_dict`."""
        self.clear()
        if state["rows"] is not None:
            self.append(Batch(**state["rows"]).to(device), version=0)
            self._versions = state["versions"].numpy().copy()

    def gather(self, index: np.ndarray) -> Batch:
        """Return dreams (B, T) by their index in order of age, oldest first."""
        assert self._rows is not None
        return self._rows[torch.from_numpy(self._order[index]).to(self._rows.action.device)]

    def sample(self, generator: np.random.Generator, num: int) -> Batch:
        """Draw dreams uniformly, with replacement."""
        return self.gather(generator.integers(len(self), size=num))
