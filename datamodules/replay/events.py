"""Windows around events: the rare rows that bring a reward or end an episode."""

from __future__ import annotations

import numpy as np

from datamodules.replay.store import ReplayStore
from modules.errors import UserError

ENV = 2**40
"""More rows than an environment has."""


class Events:
    """The training rows of a store that bring a reward or end an episode, and windows that are drawn around them.

    A window is drawn around an event if the event lies in any of its rows but the last one, whose outcome no learner
    looks at. Rows are read once, when they are new; a draw costs a few operations per event.

    Args:
        store: store whose rows are drawn.
    """

    def __init__(self, store: ReplayStore) -> None:
        self.store = store
        self.envs = store.select("training")
        self._forget()

    def _forget(self) -> None:
        self._cuts, self._known = self.store.cuts, self.store.oldest
        # environment * ENV + row of every event below _known, in order.
        self._keys = np.zeros(0, np.int64)

    def draw(
        self, generator: np.random.Generator, batch_size: int, length: int, fraction: float, recent: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw windows, with replacement: a fraction of them around events, each event as often as any other.

        The other windows are drawn uniformly. All are, while the store holds no event. Windows may cross the ends of
        episodes.

        Args:
            generator: generator of the draws.
            batch_size: number of windows, B.
            length: number of rows of a window.
            fraction: expected fraction of windows that are drawn around events.
            recent: number of last rows per environment to draw from; None draws from all rows.

        Returns:
            Environments, first rows and importance weights, (B,) each. A weight is the frequency of the window in
            uniform draws, divided by its frequency in these draws.

        Raises:
            UserError: the store holds no such window.
        """
        self._learn_of_new_rows()
        low = max(self.store.oldest, self._known - recent if recent else 0)
        high = self._known - length  # the last row that a window may start with
        if high < low:
            raise UserError(
                f"a sequence of {length} is longer than the store's {self._known - low} rows per environment"
            )
        env = generator.integers(len(self.envs), size=batch_size)
        start = generator.integers(low, high + 1, size=batch_size)
        keys = self._keys[(self._keys % ENV >= low) & (self._keys % ENV < high + length - 1)]
        if len(keys) == 0 or fraction == 0:
            return self.envs[env], start, np.ones(batch_size, np.float32)
        event_env, row = np.divmod(keys, ENV)
        first, last = np.maximum(row - length + 2, low), np.minimum(row, high)
        number = int(batch_size * fraction + generator.random())
        pick = generator.integers(len(keys), size=number)
        env[:number] = event_env[pick]
        start[:number] = generator.integers(first[pick], last[pick] + 1)
        # The frequency of a window in draws around events, divided by that in uniform draws.
        before = np.concatenate([[0.0], np.cumsum(1 / (last - first + 1))]) / len(keys)
        begin, end = (np.searchsorted(keys, env * ENV + start + offset) for offset in (0, length - 1))
        ratio = (before[end] - before[begin]) * len(self.envs) * (high + 1 - low)
        return self.envs[env], start, (1 / (1 - fraction + fraction * ratio)).astype(np.float32)

    def _learn_of_new_rows(self) -> None:
        if self.store.cuts != self._cuts:
            self._forget()
        oldest, rows = self.store.oldest, self.store.rows
        new = range(max(self._known, oldest), rows)
        columns = self.store.columns(new, self.envs)
        env, row = ((columns["reward"] != 0) | columns["terminated"]).nonzero()
        kept = self._keys[self._keys % ENV >= oldest]
        self._keys = np.sort(np.concatenate([kept, env * ENV + new.start + row]))
        self._known = rows
