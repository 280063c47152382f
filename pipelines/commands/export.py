"""Writes a store as a Minari dataset: `dreamcade export stores/pong pong/random-v0`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from datamodules.minari.export import export_store
from datamodules.replay.store import ReplayStore
from pipelines.commands.parser import Parser
from pipelines.console import check_folder
from pipelines.display.progress import counter


def export(store: Path, dataset_id: str, path: Path | None = None) -> None:
    """Write a replay store as a local Minari dataset. `dreamcade import` restores the same store from the dataset.

    Args:
        store: folder of the store.
        dataset_id: id of the new dataset, name-v0 or namespace/name-v0.
        path: folder of all local datasets; null takes MINARI_DATASETS_PATH or Minari's default in the home folder.
    """
    check_folder("--path", path)
    source = ReplayStore.open(store)
    with counter("exporting", source.num_rows, "rows") as advance:
        folder = export_store(source, dataset_id, path, advance)
    Console().print(f"{folder}: {source.num_rows} rows in {source.num_envs} environments", soft_wrap=True)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and write the dataset."""
    parser = Parser(prog="dreamcade export", description="Write a replay store as a Minari dataset.")
    parser.add_function_arguments(export, as_positional=True)
    export(**vars(parser.instantiate(parser.parse_args(list(arguments)))))
