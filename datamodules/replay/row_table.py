"""Results that a network gave for stored rows, which are kept until the network changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class RowTable:
    """Keeps results by stored row and by version of the network that gave them.

    Rows are named as in windows that are drawn by priority: `env` and `row` of `ReplayData.sample`. Row r of an
    environment lies in slot r % num_rows, so a row of more than `num_rows` rows ago is forgotten.

    Args:
        num_envs: number of environments, E.
        num_rows: number of rows per environment, R.
    """

    def __init__(self, num_envs: int, num_rows: int) -> None:
        self._row = np.full((num_envs, num_rows), -1, np.int64)
        self._version = np.full((num_envs, num_rows), -1, np.int64)
        self._results: dict[str, Tensor] = {}

    def missing(self, env: np.ndarray, row: np.ndarray, version: int) -> np.ndarray:
        """Return the first index of every row without a result of this version, (M,) int64 into env and row (N,)."""
        slot = row % self._row.shape[1]
        stale = (self._row[env, slot] != row) | (self._version[env, slot] != version)
        _, first = np.unique((env * self._row.shape[1] + slot)[stale], return_index=True)
        return np.sort(np.flatnonzero(stale)[first])

    def put(self, env: np.ndarray, row: np.ndarray, version: int, **results: Tensor) -> None:
        """Keep results (N, ...) of distinct rows (N,)."""
        slot = row % self._row.shape[1]
        self._row[env, slot], self._version[env, slot] = row, version
        index = torch.from_numpy(env * self._row.shape[1] + slot)
        for name, values in results.items():
            if name not in self._results:
                self._results[name] = values.new_zeros(self._row.size, *values.shape[1:])
            self._results[name][index.to(values.device)] = values

    def get(self, name: str, env: np.ndarray, row: np.ndarray) -> Tensor:
        """Return the results (N, ...) of rows (N,) that are not `missing`."""
        results = self._results[name]
        index = torch.from_numpy(env * self._row.shape[1] + row % self._row.shape[1])
        return results[index.to(results.device)]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the results."""
        return tuple(self._results)

    def state_dict(self) -> dict[str, Any]:
        """Return the results of the newest version as plain data for a checkpoint."""
        version = int(self._version.max())
        env, slot = np.nonzero((self._version == version) & (self._row >= 0))
        row = self._row[env, slot]
        results = {name: self.get(name, env, row).cpu() for name in self._results}
        return {"env": torch.from_numpy(env), "row": torch.from_numpy(row), "version": version, "results": results}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore a `state_dict`."""
        results = {name: values.to(device) for name, values in state["results"].items()}
        self.put(state["env"].numpy(), state["row"].numpy(), state["version"], **results)
