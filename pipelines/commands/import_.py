"""Makes a replay store from a Minari dataset: `dreamcade import atari/pong/expert-v0 stores/expert`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from datamodules.minari.foreign import Foreign
from datamodules.minari.import_ import import_dataset, open_dataset
from pipelines.commands.parser import Parser
from pipelines.console import check_folder
from pipelines.display.progress import counter


def import_(
    dataset_id: str,
    store: Path,
    path: Path | None = None,
    size: tuple[int, int] = (84, 84),
    color: Literal["grey", "rgb"] = "grey",
    num_envs: int = 9,
    num_validation_envs: int = 1,
    world: str | None = None,
    protocol: Literal["atari100k", "machado2018"] | None = None,
) -> None:
    """Write a local Minari dataset as a replay store. `dreamcade fit --data.path` trains from the store.

    Nothing is downloaded. A dataset of `dreamcade export` becomes the exported store again, and allows no option except
    `path`.

    Args:
        dataset_id: id of the dataset, name-v0 or namespace/name-v0.
        store: folder of the new store.
        path: folder of all local datasets; null takes MINARI_DATASETS_PATH or Minari's default in the home folder.
        size: height and width of the converted frames in pixels.
        color: color of the converted frames, grey or rgb.
        num_envs: number of environments of the store, over which the episodes are spread evenly.
        num_validation_envs: number of environments among num_envs, the last ones, that are held out for validation.
        world: name of the Atari game or Gymnasium id; only for a dataset that does not name it.
        protocol: protocol of the Atari game; only for a dataset that does not record it.
    """
    check_folder("STORE", store)
    dataset = open_dataset(dataset_id, path)
    foreign = Foreign(size, color, num_envs, num_validation_envs, world, protocol)
    with counter("importing", dataset.total_steps + dataset.total_episodes, "rows") as advance:
        made = import_dataset(dataset, store, foreign, advance)
    Console().print(f"{store}: {made.num_rows} rows in {made.num_envs} environments", soft_wrap=True)
    made.close()


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and make the store."""
    parser = Parser(prog="dreamcade import", description="Write a local Minari dataset as a replay store.")
    parser.add_function_arguments(import_, as_positional=True)
    import_(**vars(parser.instantiate(parser.parse_args(list(arguments)))))
