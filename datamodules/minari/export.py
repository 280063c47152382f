"""Export of a replay store as a Minari dataset, and reading such a dataset back.

An episode of T steps is T + 1 rows. For every episode the metadata of the dataset keeps the environment and the number
of its rows, whether the first row starts and the last row ends an episode, and the action, reward and termination of
the last row. So rows come back to the bit, even from a ring that has wrapped, a cut run or an unfinished episode.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import minari
import numpy as np
from gymnasium.spaces import Box, Discrete
from minari import EpisodeData, MinariDataset
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id

from datamodules.replay.format import GIB
from datamodules.replay.store import ReplayStore
from modules.errors import UserError

KEY = "dreamcade"
"""Key of the store's description in the metadata of an exported dataset."""
FOLDER = "MINARI_DATASETS_PATH"
"""Minari's environment variable for the folder of all local datasets."""


class Span(NamedTuple):
    """Consecutive rows of an episode in one environment."""

    episode: int
    start: int
    stop: int


def datasets_folder(path: Path | None = None) -> Path:
    """Return the folder of all local datasets: `path`, that of MINARI_DATASETS_PATH, or Minari's default."""
    # The path is absolute because Minari computes a wrong size of a dataset at a relative path.
    return (path or Path(os.environ.get(FOLDER) or Path.home() / ".minari" / "datasets")).absolute()


def export_store(store: ReplayStore, dataset_id: str, path: Path | None, advance: Callable[[int], None]) -> Path:
    """Write the rows of a store as a new Minari dataset, one episode at a time. A failure leaves nothing behind.

    Frames become (H, W, C). The last step of every episode is truncated unless it terminated, as Minari expects.

    Args:
        store: store to read.
        dataset_id: id of the dataset, name-v0 or namespace/name-v0.
        path: folder of all local datasets; None takes Minari's folder.
        advance: function that is called with the number of newly written rows.

    Returns:
        The dataset's folder.

    Raises:
        UserError: the store is empty, the id is malformed or taken, or the disk has not enough space.
    """
    try:
        parse_dataset_id(dataset_id)
    except (TypeError, ValueError):
        raise UserError(f"{dataset_id!r} is no valid dataset id: expected name-v0 or namespace/name-v0") from None
    folder = datasets_folder(path) / dataset_id
    rows = range(store.oldest, store.rows)
    if folder.exists():
        raise UserError(f"{folder} exists already: choose another name or version")
    if not rows:
        raise UserError(f"{store.path} holds no rows to export")
    _check_room(store, folder)
    frames, shape = len(store.observation_shape) == 3, store.observation_shape
    low, high = (0, 255) if store.observation_dtype == np.uint8 else (-np.inf, np.inf)
    try:
        with _datasets_in(datasets_folder(path)):
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                [],
                observation_space=Box(
                    low, high, (*shape[1:], shape[0]) if frames else shape, store.observation_dtype.type
                ),
                action_space=Discrete(store.num_actions),
                description="Rows of a dreamcade replay store; `dreamcade import` restores the store.",
                data_format="hdf5",
                jpeg_encoding=False,  # JPEG, Minari's default, changes the pixels
            )
        about = {name: getattr(store, name) for name in ("num_envs", "num_validation_envs", "num_actions", "extras")}
        about |= {"observation_shape": shape, "observation_dtype": store.observation_dtype.name}
        dataset.storage.update_metadata({KEY: {**about, "rows": len(rows), "description": store.description}})
        for env in range(store.num_envs):
            _, first = store.episode_starts(1, np.array([env]))
            for start, stop in pairwise(sorted({rows.start, *first[first < rows.stop].tolist(), rows.stop})):
                _write(dataset, store, env, start, stop)
                advance(stop - start)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def marks(dataset: MinariDataset) -> list[dict[str, Any]]:
    """Return the metadata of every episode of a dataset.

    Raises:
        UserError: the metadata cannot be read.
    """
    try:
        return list(dataset.storage.get_episode_metadata(dataset.episode_indices))
    except (KeyError, OSError) as error:
        raise UserError(f"the episodes of {dataset.id} cannot be read: {error}") from error


class ExportedEpisodes:
    """Rows of a dataset that `export_store` wrote.

    Args:
        dataset: open dataset that `export_store` wrote.

    Raises:
        UserError: the dataset lacks episodes.
    """

    def __init__(self, dataset: MinariDataset) -> None:
        self.layout: dict[str, Any] = dict(dataset.storage.metadata[KEY])
        """Arguments of `ReplayStore.create`, except capacity and number of environments."""
        rows, envs = self.layout.pop("rows"), self.layout.pop("num_envs")
        self._marks = marks(dataset)
        self.envs: list[list[Span]] = [[] for _ in range(envs)]
        """Rows of every environment, in order."""
        for episode, mark in enumerate(self._marks):
            self.envs[int(mark["environment"])].append(Span(episode, 0, int(mark["rows"])))
        if any(sum(span.stop for span in env) != rows for env in self.envs):
            raise UserError(f"{dataset.id} lacks episodes: expected {rows} rows in each of its {envs} environments")

    def columns(self, episode: EpisodeData, span: Span) -> list[np.ndarray]:
        """Return observation, action, reward, terminated, is_first, is_last and the extra columns of the rows."""
        mark, num = self._marks[span.episode], span.stop
        observation = episode.observations[:num]
        if observation.ndim == 4:
            observation = observation.transpose(0, 3, 1, 2)
        row = np.arange(num)
        return [
            observation,
            np.append(episode.actions[: num - 1], mark["last_action"]),
            np.append(episode.rewards[: num - 1], mark["last_reward"]),
            np.append(episode.terminations[: num - 1], mark["last_terminated"]),
            (row == 0) & bool(mark["is_first"]),
            (row == num - 1) & bool(mark["is_last"]),
            *(episode.infos[name] for name in self.layout["extras"]),
        ]


def _write(dataset: MinariDataset, store: ReplayStore, env: int, start: int, stop: int) -> None:
    batch = store.gather(np.array([env]), np.array([start]), stop - start)[0]
    assert batch.observation is not None
    observation, action, reward = (tensor.numpy() for tensor in (batch.observation, batch.action, batch.reward))
    terminated = batch.continuation.numpy() == 0
    assert not batch.is_last[:-1].any(), f"{store.path}: an episode goes on after its last row"
    if observation.ndim == 4:
        observation = observation.transpose(0, 2, 3, 1)
    # Minari has no episodes without a step. A single row gets one step, which leads back to the same observation.
    steps = max(1, stop - start - 1)
    truncated = np.zeros(steps, bool)
    truncated[-1] = not terminated[steps - 1]
    dataset.storage.update_episodes(
        [
            EpisodeBuffer(
                observations=np.concatenate([observation, observation[-1:]])[: steps + 1],
                actions=action[:steps],
                rewards=reward[:steps],
                terminations=terminated[:steps],
                truncations=truncated,
                infos={name: batch.extras[name].numpy() for name in store.extras},
            )
        ]
    )
    mark = {
        "environment": env,
        "rows": stop - start,
        "is_first": bool(batch.is_first[0]),
        "is_last": bool(batch.is_last[-1]),
        "last_action": action[-1],
        "last_reward": reward[-1],
        "last_terminated": terminated[-1],
    }
    dataset.storage.update_episode_metadata([mark], [dataset.storage.total_episodes - 1])


def _check_room(store: ReplayStore, folder: Path) -> None:
    row = int(np.prod(store.observation_shape)) * store.observation_dtype.itemsize + 16
    row += sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in store.extras.values())
    needed = store.num_rows * row
    free = shutil.disk_usage(next(parent for parent in folder.absolute().parents if parent.exists())).free
    if needed > free:
        raise UserError(f"{folder} needs {needed / GIB:.1f} GiB, but {free / GIB:.1f} GiB are free")


@contextmanager
def _datasets_in(folder: Path) -> Iterator[None]:
    """Make Minari keep its datasets in a folder, and silence its warnings about optional metadata."""
    before = os.environ.get(FOLDER)
    os.environ[FOLDER] = str(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.pop(FOLDER)
        if before is not None:
            os.environ[FOLDER] = before
