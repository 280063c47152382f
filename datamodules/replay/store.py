"""The memory-mapped replay store and its sampling.

A store is a folder: `meta.json` says what it holds, `observation.bin` and `rows.bin` are rings of rows per environment,
and `head.bin` says which rows are valid. Row r of an environment lies in slot r % (capacity + spare + 1): the slot
beyond them makes the row that an append overwrites one that is no longer valid. Spare rows are older than the capacity,
and come back where a store is cut back to a checkpoint's cursor. An append writes its rows first and moves the head
last, by one aligned 8-byte store, so that a process killed at any moment leaves exactly the rows whose append had
returned. Every row has a checksum of its bytes, its environment and its number, which `open` verifies.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch

from datamodules.replay.device_frames import DeviceFrames
from datamodules.replay.episodes import Episodes
from datamodules.replay.format import COLUMNS, Head, HeadFile, Layout, difference, row_checksum
from modules.batch import Batch
from modules.errors import UserError


class ReplayStore:
    """Rows of experience on disk, one ring per environment, and windows sampled from them.

    `create` and `open` make a store. One process writes, and others may read at the same time. Readers need a machine
    on which memory writes become visible in order.
    """

    def __init__(self, path: Path, layout: Layout, writable: bool) -> None:
        self.path, self.writable, self.capacity = path, writable, layout.capacity
        self.num_envs, self.num_validation_envs = layout.num_envs, layout.num_validation_envs
        self.observation_shape, self.num_actions = layout.observation_shape, layout.num_actions
        self.observation_dtype = np.dtype(layout.observation_dtype)
        self.extras, self.description = layout.extras, layout.description
        self._slots = layout.slots
        self._lock = (path / "head.bin").open("r+b" if writable else "rb")
        if writable:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{path} is being written by another process; open it read-only") from None
        self._maps = [
            np.memmap(path / name, dtype, "r+" if writable else "r", shape=shape)
            for name, dtype, shape in [
                ("observation.bin", self.observation_dtype, (self.num_envs, self._slots, *self.observation_shape)),
                ("rows.bin", layout.record, (self.num_envs, self._slots)),
            ]
        ]
        self._head = HeadFile(path, self.capacity, layout.spare, writable)
        self._observations, self._records = (np.asarray(mapped) for mapped in self._maps)
        self._flat_observations = self._observations.reshape(self.num_envs * self._slots, -1)
        self._flat_records = self._records.reshape(-1)
        self._scratch = np.zeros(self.num_envs, layout.record)
        self._content = self._scratch.view(np.uint8).reshape(self.num_envs, -1)[:, :-4]
        self._sealed = np.zeros(
            self.num_envs, [("content", "u1", self._content.shape[1]), ("env", "<i8"), ("row", "<i8")]
        )
        self._sealed["env"] = np.arange(self.num_envs)
        self._sealed_bytes = self._sealed.view(np.uint8).reshape(self.num_envs, -1)
        self._episodes = Episodes(self._records["is_first"], self._head)
        self._device_frames: DeviceFrames | None = None

    def keep_frames_on(self, device: torch.device) -> None:
        """Gather observations on a device from now on; its memory must hold the store's full capacity."""
        self._device_frames = DeviceFrames(self._observations, device)

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        observation_shape: tuple[int, ...],
        num_actions: int,
        num_envs: int,
        capacity: int,
        observation_dtype: Any = np.uint8,
        num_validation_envs: int = 0,
        spare: int = 0,
        extras: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
        description: Mapping[str, Any] | None = None,
    ) -> ReplayStore:
        """Make an empty store with all disk space reserved, and open it for writing.

        Args:
            path: folder that does not exist or is empty.
            observation_shape: shape (C, H, W) of a single frame, or (D,) of a vector.
            num_actions: number of actions; actions are 0 .. num_actions - 1.
            num_envs: number of environments, each with one row per append.
            capacity: number of rows per environment that are kept.
            observation_dtype: dtype of observations, uint8 or float32.
            num_validation_envs: number of the last environments, which are held out of sampling for training.
            spare: number of rows per environment beyond the capacity, which become visible only after a cut.
            extras: further columns, name to (dtype, shape).
            description: plain JSON that describes the rows: game, protocol, action meanings.

        Raises:
            UserError: the folder is not empty, there is too little disk space, or a number is impossible.
        """
        layout = Layout(
            observation_shape=tuple(observation_shape),
            observation_dtype=np.dtype(observation_dtype).name,
            num_actions=num_actions,
            num_envs=num_envs,
            capacity=capacity,
            num_validation_envs=num_validation_envs,
            spare=spare,
            extras={name: (str(dtype), tuple(shape)) for name, (dtype, shape) in (extras or {}).items()},
            description=dict(description or {}),
        )
        layout.write(Path(path))
        return cls(Path(path), layout, writable=True)

    @classmethod
    def open(
        cls, path: str | Path, *, writable: bool = False, verify: bool = True, expect: Mapping[str, Any] | None = None
    ) -> ReplayStore:
        """Open a store.

        Args:
            path: folder of the store.
            writable: open the store to append; one process at a time.
            verify: check the checksum of every valid row, at about 1 GB/s.
            expect: required entries of the description, such as game and protocol.

        Raises:
            UserError: the folder is no store, has another format version, is cut short, damaged, or being written, or
                holds other experience.
        """
        path = Path(path)
        layout = Layout.read(path)
        for key, value in json.loads(json.dumps(dict(expect or {}))).items():
            if found := difference(layout.description.get(key), value, key):
                raise UserError(f"{path} holds {found}")
        store = cls(path, layout, writable)
        try:
            head = store._head.read()
            if not head.oldest <= head.rows <= head.oldest + layout.capacity:
                raise UserError(f"{path} is damaged: head.bin says it holds rows {head.oldest} to {head.rows}")
            if verify:
                store._verify()
        except UserError:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Release the files and the lock; the store cannot be used afterwards."""
        self._lock.close()
        del self._maps, self._head, self._observations, self._records, self._flat_observations, self._flat_records
        del self._episodes, self._device_frames

    def flush(self) -> None:
        """Write everything to the disk, rows before the head. This protects from a power cut; a kill needs no flush."""
        for mapped in [*self._maps, self._head.map]:
            mapped.flush()

    @property
    def rows(self) -> int:
        """Number of rows per environment whose append returned, overwritten rows included; a checkpoint keeps it."""
        return self._head.read().rows

    @property
    def oldest(self) -> int:
        """The oldest valid row; all rows from it up to `rows` are valid."""
        return self._head.read().oldest

    @property
    def cuts(self) -> int:
        """Number of times that the rows were cut back to a checkpoint's cursor."""
        return self._head.read().cuts

    @property
    def num_rows(self) -> int:
        """Number of valid rows of all environments together."""
        return (self.rows - self.oldest) * self.num_envs

    def select(self, envs: str | np.ndarray) -> np.ndarray:
        """Return "training", "validation" or an array as an int64 array of environments."""
        if isinstance(envs, str):
            assert envs in ("training", "validation"), envs
            if envs == "validation" and self.num_validation_envs == 0:
                raise UserError(f"{self.path} has no validation environments: set num_validation_envs to at least 1")
            split = self.num_envs - self.num_validation_envs
            return np.arange(split) if envs == "training" else np.arange(split, self.num_envs)
        envs = np.asarray(envs, np.int64)
        assert np.isin(envs, np.arange(self.num_envs)).all(), envs
        return envs

    def append(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        is_first: np.ndarray,
        is_last: np.ndarray,
        extras: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Append one row to every environment; once the call returns, a kill of the process cannot lose the row.

        The first rows after a cut or a reopening must start episodes, unless the environments were restored as well.

        Args:
            observation: observations (num_envs, *observation_shape) of the store's dtype.
            action: actions (num_envs,) chosen at the observations.
            reward: raw rewards (num_envs,) of the actions.
            terminated: flags (num_envs,): the action ended the episode.
            is_first: flags (num_envs,): the observation starts an episode.
            is_last: flags (num_envs,): the observation ends an episode.
            extras: extra columns by name, (num_envs, ...) each.
        """
        observation, extras = np.ascontiguousarray(observation), extras or {}
        assert self.writable
        assert observation.shape == (self.num_envs, *self.observation_shape), observation.shape
        assert observation.dtype == self.observation_dtype, observation.dtype
        assert extras.keys() == self.extras.keys(), f"extras {sorted(extras)}, expected {sorted(self.extras)}"
        head = self._head.read()
        row, record = head.rows, self._scratch
        columns = dict(zip(COLUMNS, (action, reward, terminated, is_first, is_last), strict=True))
        for name, column in (columns | dict(extras)).items():
            record[name] = column
        assert ((record["action"] >= 0) & (record["action"] < self.num_actions)).all(), action
        # Equals row_checksum, but all bytes after an observation lie side by side: one pass instead of two.
        self._sealed["content"], self._sealed["row"] = self._content, row
        record["checksum"] = [
            crc32(rest.data, crc32(frame.data)) for frame, rest in zip(observation, self._sealed_bytes, strict=True)
        ]
        # This order makes a kill harmless: the row, then the highest row written, then the number of valid rows.
        self._observations[:, row % self._slots] = observation
        self._records[:, row % self._slots] = record
        self._head.raise_high(row + 1)
        self._head.write_rows(row + 1, head.cuts)

    def truncate(self, rows: int) -> None:
        """Cut every environment back to a checkpoint's cursor, by one atomic store.

        Spare rows become valid again; overwritten rows do not.

        Raises:
            UserError: the cursor is outside the stored rows.
        """
        assert self.writable
        head = self._head.read()
        if not (kept := self._head.kept) <= rows <= head.rows:
            raise UserError(f"{self.path} cannot be cut back to row {rows}: it holds rows {kept} to {head.rows}")
        self._head.write_rows(rows, head.cuts + 1)

    def sample(
        self,
        generator: np.random.Generator,
        batch_size: int,
        sequence_length: int,
        *,
        frame_stack: int = 1,
        envs: str | np.ndarray = "training",
        cross_episodes: bool = True,
        recent: int | None = None,
    ) -> Batch:
        """Draw windows of consecutive rows, uniformly over all valid windows, with replacement.

        If `recent` leaves a single window per environment, every window is drawn once before any is drawn twice.

        Args:
            generator: generator of the draws.
            batch_size: number of windows, B.
            sequence_length: number of rows of a window, T.
            frame_stack: number of frames in an observation, n; the first frame of an episode (or of the store) repeats
                where earlier ones are missing.
            envs: environments to draw from: "training", "validation" or an array.
            cross_episodes: let windows cross the ends of episodes; False keeps a window within one episode and one run.
            recent: number of last rows per environment to draw from; None draws from all rows.

        Returns:
            Rows of shape (B, T), observations (B, T, n * C, H, W) or (B, T, n * D).

        Raises:
            UserError: the store holds no such window.
        """
        head = self._episodes.refresh()
        low = max(head.oldest, head.rows - recent if recent else 0)
        starts = range(low, head.rows - sequence_length + 1)
        if not starts:
            raise UserError(
                f"a sequence of {sequence_length} is longer than the store's {head.rows - low} rows per environment"
            )
        env, start = self._draw(generator, batch_size, starts, sequence_length, self.select(envs), cross_episodes)
        batch, first = self._gather(head, env, start, sequence_length, frame_stack)
        now = self._head.read()
        lost = np.flatnonzero((first < now.oldest) | (now.cuts != head.cuts))
        if len(lost):
            # A writer overwrote these windows during the read: draw them again, and keep the others.
            again = self.sample(
                generator, len(lost), sequence_length,
                frame_stack=frame_stack, envs=envs, cross_episodes=cross_episodes, recent=recent,
            )  # fmt: skip
            for tensor, drawn in zip(batch.tensors(), again.tensors(), strict=True):
                tensor[lost] = drawn
        return batch

    def gather(self, env: np.ndarray, start: np.ndarray, sequence_length: int, frame_stack: int = 1) -> Batch:
        """Return the windows that start at given rows, in the shapes of `sample`.

        Raises:
            UserError: a row is not valid.
        """
        env, start = np.asarray(env, np.int64), np.asarray(start, np.int64)
        head = self._episodes.refresh()
        stop = start.max() + sequence_length
        if head.oldest <= start.min() and stop <= head.rows:
            batch, first = self._gather(head, env, start, sequence_length, frame_stack)
            now = self._head.read()
            if now.cuts == head.cuts and now.oldest <= first.min():
                return batch
        raise UserError(
            f"rows {start.min()} to {stop} are not all in {self.path}, which has {head.oldest} to {head.rows}"
        )

    def columns(self, rows: range, envs: np.ndarray) -> np.ndarray:
        """Return all but the observations of valid rows, (len(envs), len(rows)) records with the fields of COLUMNS."""
        records: np.ndarray = self._records[envs[:, None], np.asarray(rows, np.int64) % self._slots]
        return records

    def windows(
        self, sequence_length: int, envs: str | np.ndarray = "training", cross_episodes: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return every window that `sample` may draw: (N,) environments and (N,) first rows."""
        head = self._episodes.refresh()
        starts = range(head.oldest, head.rows - sequence_length + 1)
        return self._windows(starts, sequence_length, self.select(envs), cross_episodes)

    def episode_starts(
        self, sequence_length: int, envs: str | np.ndarray = "training"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return every window whose first row starts an episode: (N,) environments and (N,) first rows."""
        head = self._episodes.refresh()
        return self._episodes.episode_starts(self.select(envs), range(head.oldest, head.rows - sequence_length + 1))

    def _windows(
        self, starts: range, length: int, envs: np.ndarray, cross_episodes: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        env, start = (grid.reshape(-1) for grid in np.meshgrid(envs, np.asarray(starts, np.int64), indexing="ij"))
        if not cross_episodes:
            keep = self._episodes.within(env, start, length)
            env, start = env[keep], start[keep]
        return env, start

    def _draw(
        self, generator: np.random.Generator, num: int, starts: range, length: int, envs: np.ndarray, cross: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        size = num if cross else 4 * num
        if len(starts) == 1:
            env = np.resize(generator.permutation(envs), size)
        else:
            env = envs[generator.integers(len(envs), size=size)]
        start = generator.integers(starts.start, starts.stop, size=size)
        if cross:
            return env, start
        keep = np.flatnonzero(self._episodes.within(env, start, length))[:num]
        if len(keep) < num:
            # Few windows are valid: list them all instead.
            env, start = self._windows(starts, length, envs, cross)
            if len(env) == 0:
                raise UserError(f"a sequence of {length} is longer than any episode in {self.path}")
            keep = generator.integers(len(env), size=num)
        return env[keep], start[keep]

    def _gather(
        self, head: Head, env: np.ndarray, start: np.ndarray, length: int, frame_stack: int
    ) -> tuple[Batch, np.ndarray]:
        """Return windows, and the oldest row (B,) that each window read."""
        base = env[:, None] * self._slots
        row = start[:, None] + np.arange(length)  # (B, T)
        index = base + row % self._slots
        record = self._flat_records[index]
        first, frame_index = start, index
        if frame_stack > 1:
            episode_start = np.maximum(self._episodes.episode_start(env[:, None], row), head.oldest)
            frame = np.maximum(
                row[..., None] - np.arange(frame_stack - 1, -1, -1), episode_start[..., None]
            )  # (B, T, n)
            frame_index = base[..., None] + frame % self._slots
            first = frame.min((1, 2))
        if self._device_frames is None:
            # A single take of whole frames, repeated frames included, is as fast as copying the same bytes.
            observation = torch.from_numpy(np.take(self._flat_observations, frame_index, axis=0))
        else:
            observation = self._device_frames.take(frame_index.reshape(-1), head)
        channels, *rest = self.observation_shape
        batch = Batch(
            action=_column(record, "action"),
            reward=_column(record, "reward"),
            continuation=1 - _column(record, "terminated").float(),
            is_first=_column(record, "is_first"),
            is_last=_column(record, "is_last"),
            observation=observation.reshape(*row.shape, frame_stack * channels, *rest),
            extras={name: _column(record, name) for name in self.extras},
        )
        return batch, first

    def _verify(self) -> None:
        head = self._head.read()
        for env in range(self.num_envs):
            action = self._records["action"][env]
            known = (action >= 0) & (action < self.num_actions)
            for row in range(head.oldest, head.rows):
                slot = row % self._slots
                content = self._records[env, slot : slot + 1].view(np.uint8)[:-4]
                held = int(self._records["checksum"][env, slot])
                intact = row_checksum(self._observations[env, slot], content, env, row) == held
                if intact and known[slot]:
                    continue
                now = self._head.read()
                if now.cuts == head.cuts and row >= now.oldest:
                    wrong = f"has no action below {self.num_actions}" if intact else "does not match its checksum"
                    raise UserError(f"{self.path} is damaged: row {row} of environment {env} {wrong}")


def _column(record: np.ndarray, name: str) -> torch.Tensor:
    return torch.from_numpy(record[name].copy())
