"""Plays a game by planning in the emulator: `dreamcade plan --config configs/experiment/emulator__uct.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datamodules.environments.emulator import AtariEmulators
from datamodules.ranks import generator
from modules.errors import check_range
from pipelines.acting.play import RulesPlay, Stage
from pipelines.commands.parser import Parser
from pipelines.console import CONFIGS, check_folder, check_seed, find_config
from pipelines.display.films import write_mp4
from pipelines.display.progress import Rate
from pipelines.evaluation.episodes import Move, play, tell
from pipelines.evaluation.results import Evaluation, append

RUNS = Path("runs")
FILMED = 1000
"""Decisions of the first game that are kept for its film."""
FRAMES_PER_SECOND = 60


class Film:
    """Films the first game, and shows the scores of all games on a progress bar.

    Args:
        num_envs: number of games.
        progress: the bar.
        task: number of its task.
    """

    def __init__(self, num_envs: int, progress: Progress, task: Any) -> None:
        self.frames: list[np.ndarray] = []
        self.score = np.zeros(num_envs)
        self.progress, self.task = progress, task

    def add(self, move: Move) -> None:
        """Take in a move."""
        if move.counts[0] and len(self.frames) < FILMED:
            self.frames.append(move.after.observation[0].transpose(1, 2, 0))
        self.score += move.after.reward * move.counts
        self.progress.update(self.task, advance=1, score=f"{self.score.mean():,.1f}")


def plan(
    actor: RulesPlay,
    game: str = "Breakout",
    protocol: Literal["atari100k", "machado2018"] = "atari100k",
    episodes: int = 1,
    max_steps: int | None = None,
    mode: int | None = None,
    difficulty: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    name: str = "emulator__uct",
) -> None:
    """Play whole games by a search in the emulator, with random play at its leaves: nothing is learned.

    Args:
        actor: settings of who plans.
        game: game in any usual spelling.
        protocol: protocol by which the game is played; under sticky actions a plan is made for one draw of them.
        episodes: number of games, each with a seed of its own, which are searched as one batch.
        max_steps: decisions after which a game is given up; null plays it to its end.
        mode: mode of the game, one of ALE's numbers; null is its default.
        difficulty: difficulty of the game, one of ALE's numbers; null is its default.
        seed: seed of everything.
        out: folder of the result and the film; runs/<name of the config>/<n> unless given.
        name: name of the experiment in a report.
    """
    check_range("--episodes", episodes, 1)
    check_range("--max_steps", max_steps, 1)
    check_seed("--seed", seed)
    check_folder("--out", out)
    environment = AtariEmulators(game, episodes, protocol, "evaluation", (210, 160), "rgb", seed, mode, difficulty)
    player = actor.actor(Stage(environment, lambda purpose: generator(0, purpose, seed), greedy=True))
    folder = out or next_folder(name)
    title = environment.description["game"]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("score {task.fields[score]}")) as progress:
        task = progress.add_task(f"planning in {title}", total=max_steps, unit="decisions", score="0")
        film = Film(episodes, progress, task)
        played = play(environment, player, max_steps, watch=film.add)
    description = environment.description
    settings = {key: value for key in ("mode", "difficulty") if (value := description[key]) is not None}
    evaluation = Evaluation(
        env_steps=0,
        updates=0,
        experiment=name,
        seed=seed,
        environment=description["environment"],
        game=description["game"],
        protocol=description["protocol"] | settings,
        policy=actor.describe(greedy=True),
        episodes=played,
        final=True,
    )
    append(folder, evaluation)
    tell(evaluation, folder)
    path = folder / "game.mp4"
    write_mp4(path, np.stack(film.frames), FRAMES_PER_SECOND // environment.protocol.frame_skip)
    Console().print(f"the first {len(film.frames)} decisions as a film: {path}", soft_wrap=True)
    environment.close()


def next_folder(name: str) -> Path:
    """Return runs/<name>/<n> with the first number that is free after all others."""
    numbers = [int(path.name) for path in (RUNS / name).glob("*") if path.name.isdigit()]
    return RUNS / name / str(max(numbers, default=-1) + 1)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and plan."""
    parser = Parser(
        prog="dreamcade plan",
        description="Play an Atari game by planning in the emulator itself.",
        default_config_files=[str(CONFIGS / "experiment" / "emulator__uct.yaml")],
    )
    parser.add_argument("-c", "--config", action="config", help="a YAML file of these options")
    parser.add_function_arguments(plan)
    found = [find_config(before, argument) for before, argument in pairwise(["plan", *arguments])]
    parsed = parser.parse_args(found)
    configs = parsed.pop("config", None) or []
    if configs and parsed.name == parser.get_default("name"):
        parsed.name = "-".join(Path(str(path)).stem for path in configs)
    plan(**vars(parser.instantiate(parsed)))
