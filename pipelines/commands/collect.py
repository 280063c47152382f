"""Records a replay store of random play: `dreamcade collect --game Pong --path stores/pong`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console

from datamodules.atari import AtariReplay
from datamodules.collector import Collector
from datamodules.ranks import generator
from datamodules.settings import Envs, Storage
from modules.errors import check_range
from pipelines.acting.actors import RandomActor
from pipelines.commands.parser import Parser
from pipelines.console import check_folder, check_seed
from pipelines.display.progress import counter


def collect(
    game: str,
    path: Path,
    steps: int = 20_000,
    protocol: Literal["atari100k", "machado2018"] = "atari100k",
    num_envs: int = 8,
    num_validation_envs: int = 1,
    size: tuple[int, int] = (84, 84),
    color: Literal["grey", "rgb"] = "grey",
    seed: int = 0,
) -> None:
    """Play a game with random actions and record a store. `dreamcade fit --data.path` trains from the store.

    Args:
        game: name of the game in any usual spelling.
        path: folder of the new store.
        steps: number of real steps in all training environments together.
        protocol: protocol by which the game is played.
        num_envs: number of training environments.
        num_validation_envs: number of further environments, whose episodes are held out for validation.
        size: height and width of a frame in pixels.
        color: color of the frames, grey or rgb.
        seed: seed of the environments and the actions.
    """
    check_range("--steps", steps, 1)
    check_seed("--seed", seed)
    check_folder("--path", path)
    data = AtariReplay(
        game=game,
        protocol=protocol,
        size=size,
        color=color,
        envs=Envs(num_envs, num_validation_envs),
        storage=Storage(capacity=steps),
        seed=seed,
    )
    store = data.create(path, spare=0)
    collector = Collector(data.environment, store)
    actor = RandomActor(store.num_actions, generator(0, "actor", seed))
    with counter(f"playing {data.game}", store.capacity * num_envs, "steps") as advance:
        for _ in range(store.capacity):
            collector.step(actor)
            advance(num_envs)
    store.close()
    returns, scores = collector.returns, ""
    if returns:
        scores = f", mean return {np.mean(returns):.1f} over {len(returns)} episodes"
    Console().print(f"{path}: {store.capacity * num_envs} steps{scores}", soft_wrap=True)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and record the store."""
    parser = Parser(prog="dreamcade collect", description="Record a replay store of random play.")
    parser.add_function_arguments(collect)
    collect(**vars(parser.instantiate(parser.parse_args(list(arguments)))))
