"""The first rows of the episodes in a replay store."""

from __future__ import annotations

import numpy as np

from datamodules.replay.format import Head, HeadFile


class Episodes:
    """Finds the first row of every valid row's episode, and follows the rows that are appended.

    Args:
        is_first: view (num_envs, slots) bool of the store's rings, which this or another process keeps writing.
        head: head of the store, which tells the valid rows.
    """

    def __init__(self, is_first: np.ndarray, head: HeadFile) -> None:
        self._is_first, self._head = is_first, head
        self._num_envs, self._slots = is_first.shape
        # (num_envs, slots): the first row of the row's episode that was valid when it was read; set for rows below
        # _known.
        self._episode_start = np.zeros(is_first.shape, np.int64)
        # row * environments + environment of every row below _known that starts an episode, in order.
        self._first = np.zeros(0, np.int64)
        self._known, self._cuts = 0, -1

    def episode_start(self, env: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Return the first rows of the episodes of given rows; a result may be invalid by now, or a run's first row."""
        return self._episode_start[env, row % self._slots]

    def within(self, env: np.ndarray, start: np.ndarray, length: int) -> np.ndarray:
        """Return whether windows of `length` rows lie within one episode."""
        return self.episode_start(env, start + length - 1) <= start

    def episode_starts(self, envs: np.ndarray, rows: range) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows in a range that start episodes, in order: (N,) environments and (N,) rows."""
        low, high = np.searchsorted(self._first, [rows.start * self._num_envs, rows.stop * self._num_envs])
        row, env = np.divmod(self._first[low:high], self._num_envs)
        chosen = np.isin(env, envs)
        return env[chosen], row[chosen]

    def refresh(self) -> Head:
        """Find the episode starts of the rows that were appended since the last call, and return the head."""
        while True:
            head = self._head.read()
            if head.cuts != self._cuts:
                self._cuts, self._known, self._first = head.cuts, 0, self._first[:0]
            start = max(self._known, head.oldest)
            if start >= head.rows:
                return head
            row = np.arange(start, head.rows)
            is_first = self._is_first[:, row % self._slots]
            now = self._head.read()
            if now.cuts != head.cuts or now.oldest >= head.rows:
                continue
            # Drop the flags that a writer overwrote during the read.
            dropped = max(0, now.oldest - start)
            row, is_first = row[dropped:], is_first[:, dropped:]
            episode_start = np.where(is_first, row, -1)
            has_successor = row[0] == self._known and row[0] > head.oldest
            before = self._episode_start[:, (row[0] - 1) % self._slots] if has_successor else row[0]
            episode_start[:, 0] = np.where(is_first[:, 0], row[0], before)
            self._episode_start[:, row % self._slots] = np.maximum.accumulate(episode_start, axis=1)
            place, env = is_first.T.nonzero()
            kept = np.searchsorted(self._first, now.oldest * self._num_envs)
            self._first = np.concatenate([self._first[kept:], row[place] * self._num_envs + env])
            self._known = head.rows
            return Head(now.cuts, now.oldest, head.rows)
