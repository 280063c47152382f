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

    Made by `create` or `open`. One process writes; others may read meanwhile, if stores become visible in order.
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
        """Gather observations on a device from now on, whose memory must hold all the room that the store has."""
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
        """Make an empty store, with all its room on disk reserved, and open it for writing.

        Args:
            path: a folder that does not exist or is empty.
            observation_shape: (C, H, W) of a single frame, or (D,).
            num_actions: actions are 0 .. num_actions - 1.
            num_envs: rows per append, one per environment.
            capacity: rows kept per environment.
            observation_dtype: uint8 or float32.
            num_validation_envs: the last environments, held out of sampling for training.
            spare: rows kept per environment beyond the capacity, out of sight, for who cuts the store back.
            extras: further columns, name to (dtype, shape).
            description: plain JSON that says what the rows are: game, protocol, action meanings.

        Raises:
            UserError: the folder is not empty, the room does not suffice, or a number makes no sense.
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
            expect: what the description must say, such as game and protocol.

        Raises:
            UserError: not a store, another format version, cut short, damaged, being written, or of other experience.
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
        """Let go of the files and of the lock; the store is of no use afterwards."""
        self._lock.close()
        del self._maps, self._head, self._observations, self._records, self._flat_observations, self._flat_records
        del self._episodes, self._device_frames

    def flush(self) -> None:
        """Write everything to the disk itself, rows before the head. Only a power cut needs it; a kill does not."""
        for mapped in [*self._maps, self._head.map]:
            mapped.flush()

    @property
    def rows(self) -> int:
        """Rows per environment whose append returned, overwritten ones included: the cursor that a checkpoint keeps."""
        return self._head.read().rows

    @property
    def oldest(self) -> int:
        """The oldest valid row; those up to `rows` are valid."""
        return self._head.read().oldest

    @property
    def num_rows(self) -> int:
        """Valid rows of all environments together."""
        return (self.rows - self.oldest) * self.num_envs

    def select(self, envs: str | np.ndarray) -> np.ndarray:
        """Resolve "training", "validation" or an array into an int array of environments."""
        if isinstance(envs, str):
            assert envs in ("training", "validation"), envs
            if envs == "validation" and self.num_validation_envs == 0:
                raise UserError(f"{self.path} holds out no environments; expected num_validation_envs of 1 or more")
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
        """Append one row to every environment; it is in the store, whatever happens to the process, once this returns.

        The first rows after a cut or a reopening must open episodes, unless the environments were restored as well.

        Args:
            observation: (num_envs, *observation_shape), of the store's dtype.
            action: (num_envs,) chosen at the observation.
            reward: (num_envs,) raw, that the action earned.
            terminated: (num_envs,) the action ended the episode.
            is_first: (num_envs,) the observation opens an episode.
            is_last: (num_envs,) the observation closes one.
            extras: the extra columns, (num_envs, ...) each.
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
        # As row_checksum has it, with what follows an observation side by side: one pass instead of two.
        self._sealed["content"], self._sealed["row"] = self._content, row
        record["checksum"] = [
            crc32(rest.data, crc32(frame.data)) for frame, rest in zip(observation, self._sealed_bytes, strict=True)
        ]
        # The order is what makes a kill harmless: the row, then how high was written, then how much is valid.
        self._observations[:, row % self._slots] = observation
        self._records[:, row % self._slots] = record
        self._head.raise_high(row + 1)
        self._head.write_rows(row + 1, head.cuts)

    def truncate(self, rows: int) -> None:
        """Cut every environment back to a checkpoint's cursor, by one atomic store.

        As many old rows come back as were spare; what was overwritten since does not.

        Raises:
            UserError: the cursor lies outside what is stored.
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
        """Draw windows of consecutive rows, uniformly over all that are valid, with replacement.

        Where `recent` leaves every environment a single window, none comes twice before all have come once.

        Args:
            generator: the source of the draws.
            batch_size: B, windows.
            sequence_length: T, rows of a window.
            frame_stack: n, frames in an observation; before an episode's (or the store's) first frame it is repeated.
            envs: "training", "validation" or an array.
            cross_episodes: False keeps a window within one episode (and within one run, where a run was cut).
            recent: only from the last so many rows of an environment.

        Returns:
            Rows of shape (B, T), observations (B, T, n * C, H, W) or (B, T, n * D).

        Raises:
            UserError: no such window exists.
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
            # A writer overwrote these windows while they were read: draw them again, and keep the others.
            again = self.sample(
                generator, len(lost), sequence_length,
                frame_stack=frame_stack, envs=envs, cross_episodes=cross_episodes, recent=recent,
            )  # fmt: skip
            for tensor, drawn in zip(batch.tensors(), again.tensors(), strict=True):
                tensor[lost] = drawn
        return batch

    def gather(self, env: np.ndarray, start: np.ndarray, sequence_length: int, frame_stack: int = 1) -> Batch:
        """Read the windows that start at given rows; the shapes are those of `sample`.

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

    def windows(
        self, sequence_length: int, envs: str | np.ndarray = "training", cross_episodes: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """List every window that `sample` may draw: (N,) environments and (N,) first rows."""
        head = self._episodes.refresh()
        starts = range(head.oldest, head.rows - sequence_length + 1)
        return self._windows(starts, sequence_length, self.select(envs), cross_episodes)

    def episode_starts(
        self, sequence_length: int, envs: str | np.ndarray = "training"
    ) -> tuple[np.ndarray, np.ndarray]:
        """List every window whose first row opens an episode: (N,) environments and (N,) first rows."""
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
        """Read windows; also return the oldest row that each touched, (B,)."""
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
            # One take of whole frames, repeated ones included: as quick as copying the same bytes.
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
