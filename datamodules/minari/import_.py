"""A replay store made of a local Minari dataset."""

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
        UserError: it is not there, or cannot be read.
    """
    folder = datasets_folder(path)
    data = folder / dataset_id / "data"
    if not (data / "metadata.json").exists():
        here = sorted(str(found.parent.parent.relative_to(folder)) for found in folder.rglob("data/metadata.json"))
        raise UserError(
            f"there is no Minari dataset {dataset_id} in {folder}, which holds {', '.join(here) or 'none'}; "
            "nothing is downloaded"
        )
    try:
        return MinariDataset(data)
    except Exception as error:  # whatever a missing environment, an unknown format or a damaged file raises
        raise UserError(f"the Minari dataset {data} cannot be read: {error}") from error


def import_dataset(
    dataset: MinariDataset, target: Path, foreign: Foreign, advance: Callable[[int], None]
) -> ReplayStore:
    """Make a store of a dataset, with one episode per environment in memory; a failure leaves nothing behind.

    Args:
        dataset: one that was exported from a store becomes that store again, its capacity aside.
        target: folder of the new store.
        foreign: how a dataset of others is converted.
        advance: function that is called with the number of newly written rows.

    Returns:
        The store, open for writing.

    Raises:
        UserError: the dataset cannot become a store, or the store cannot be made.
    """
    source: ExportedEpisodes | ForeignEpisodes
    if KEY not in dataset.storage.metadata:
        source = ForeignEpisodes(dataset, foreign)
    elif foreign == Foreign():
        source = ExportedEpisodes(dataset)
    else:
        raise UserError(f"{dataset.id} was exported from a store, which comes back as it was: leave the options out")
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
    """Yield the rows of an environment, one by one."""
    for span in env:
        try:
            episode = next(dataset.iterate_episodes([int(dataset.episode_indices[span.episode])]))
        except (KeyError, OSError, ValueError) as error:
            raise UserError(f"episode {span.episode} of {dataset.id} cannot be read: {error}") from error
        yield from zip(*source.columns(episode, span), strict=True)
