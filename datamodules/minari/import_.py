"""Import of a local Minari dataset as a replay store."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from minari import MinariDataset

from datamodules.minari.export import KEY, ExportedEpisodes, Span, datasets_folder
from datamodules.minari.foreign import Foreign, ForeignEpisodes
from datamodules.replay.store import ReplayStore
from modules.errors import UserError


def open_dataset(dataset_id: str, path: Path | None = None) -> MinariDataset:
    """Open a local dataset; nothing is downloaded.

    Args:
        dataset_id: id of the dataset, name-v0 or namespace/name-v0.
        path: folder of all local datasets; None takes Minari's folder.

    Raises:
        UserError: the dataset does not exist, or cannot be read.
    """
    folder = datasets_folder(path)
    data = folder / dataset_id / "data"
    if not (data / "metadata.json").exists():
        here = sorted(str(found.parent.parent.relative_to(folder)) for found in folder.rglob("data/metadata.json"))
        raise UserError(
            f"there is no Minari dataset {dataset_id} in {folder}, which has {', '.join(here) or 'none'}; "
            "dreamcade downloads nothing"
        )
    try:
        return MinariDataset(data)
    except Exception as error:  # a missing environment, an unknown format and a damaged file raise different types
        raise UserError(f"the Minari dataset {data} cannot be read: {error}") from error


def import_dataset(
    dataset: MinariDataset, target: Path, foreign: Foreign, advance: Callable[[int], None]
) -> ReplayStore:
    """Write a dataset as a replay store. A failure leaves nothing behind.

    One episode per environment is in memory at a time.

    Args:
        dataset: dataset to read; one that was exported from a store becomes that store again, except its capacity.
        target: folder of the new store.
        foreign: settings for the conversion of a dataset from another source.
        advance: function that is called with the number of newly written rows.

    Returns:
        The store, open for writing.

    Raises:
        UserError: the dataset cannot be converted, or the store cannot be created.
    """
    source: ExportedEpisodes | ForeignEpisodes
    if KEY not in dataset.storage.metadata:
        source = ForeignEpisodes(dataset, foreign)
    elif foreign == Foreign():
        source = ExportedEpisodes(dataset)
    else:
        raise UserError(
            f"{dataset.id} was exported from a store and is imported unchanged: leave out --size, --color, --num_envs, "
            "--num_validation_envs, --world and --protocol"
        )
    rows, envs = sum(span.stop - span.start for span in source.envs[0]), len(source.envs)
    store = ReplayStore.create(target, num_envs=envs, capacity=rows, **source.layout)
    try:
        streams = [_stream(dataset, source, env) for env in source.envs]
        for values in zip(*streams, strict=True):
            observation, action, reward, terminated, is_first, is_last, *extras = (
                np.stack(column) for column in zip(*values, strict=True)
            )
            columns = dict(zip(store.extras, extras, strict=True))
            store.append(observation, action, reward, terminated, is_first, is_last, columns)
            advance(envs)
    except BaseException:
        store.close()
        shutil.rmtree(target, ignore_errors=True)
        raise
    return store


def _stream(
    dataset: MinariDataset, source: ExportedEpisodes | ForeignEpisodes, env: list[Span]
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the rows of one environment, one at a time."""
    for span in env:
        try:
            episode = next(dataset.iterate_episodes([int(dataset.episode_indices[span.episode])]))
        except (KeyError, OSError, ValueError) as error:
            raise UserError(f"episode {span.episode} of {dataset.id} cannot be read: {error}") from error
        yield from zip(*source.columns(episode, span), strict=True)
