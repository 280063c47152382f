"""Makes a store of a Minari dataset: `dreamcade import atari/pong/expert-v0 stores/expert`."""

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
    """Make a store of a local Minari dataset, which `--data.path` trains from. Nothing is downloaded.

    A dataset that `dreamcade export` wrote becomes the store that it was; all options but `path` are for others'.

    Args:
        dataset_id: name-v0 or namespace/name-v0.
        store: folder of the new store.
        path: folder of all local datasets; null takes MINARI_DATASETS_PATH, or Minari's own in the home folder.
        size: height and width of a frame.
        color: grey or rgb.
        num_envs: number of environments of the store, over which the episodes are spread.
        num_validation_envs: the last of them, held out.
        world: game or Gymnasium id, where the dataset names none.
        protocol: by which the game was played, where the dataset does not say.
    """
    check_folder("STORE", store)
    dataset = open_dataset(dataset_id, path)
    foreign = Foreign(size, color, num_envs, num_validation_envs, world, protocol)
    with counter("importing", dataset.total_steps + dataset.total_episodes, "rows") as advance:
        made = import_dataset(dataset, store, foreign, advance)
    Console().print(f"{store}: {made.num_rows} rows in {made.num_envs} environments", soft_wrap=True)
    made.close()


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and import."""
    parser = Parser(prog="dreamcade import", description="Make a store of a local Minari dataset.")
    parser.add_function_arguments(import_, as_positional=True)
    import_(**vars(parser.instantiate(parser.parse_args(list(arguments)))))
