"""Plays a game by planning in the emulator: `dreamcade plan --config configs/experiment/emulator__uct.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
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
from pipelines.console import CONFIGS, check_folder, check_seed, find_configs, run_name
from pipelines.display.films import write_mp4
from pipelines.display.progress import Rate
from pipelines.evaluation.episodes import Move, play, tell
from pipelines.evaluation.results import Evaluation, append
from pipelines.machine.provenance import now

RUNS = Path("runs")
FILMED = 1000
"""Largest number of decisions of the first game that its film shows."""
FRAMES_PER_SECOND = 60


class Film:
    """Films the first game, and shows the scores of all games on a progress bar.

    Args:
        num_envs: number of games.
        progress: progress bar that shows the scores.
        task: id of the bar's task.
    """

    def __init__(self, num_envs: int, progress: Progress, task: Any) -> None:
        self.frames: list[np.ndarray] = []
        self.score = np.zeros(num_envs)
        self.progress, self.task = progress, task

    def add(self, move: Move) -> None:
        """Add a move to the film and to the scores."""
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
    """Play whole games by a search in the emulator, which evaluates leaves by random play and learns nothing.

    Args:
        actor: settings of the planning actor.
        game: name of the game in any usual spelling.
        protocol: protocol by which the game is played; a plan assumes one sample of sticky actions.
        episodes: number of games, each with a different seed; the search runs all games as one batch.
        max_steps: number of decisions after which a game is cut; null plays it to its end.
        mode: mode of the game, one of ALE's numbers; null takes ALE's default.
        difficulty: difficulty of the game, one of ALE's numbers; null takes ALE's default.
        seed: seed of the games, the search and the random play.
        out: folder of the result and the film; null takes runs/<name of the config>/<n>.
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
        date=now(),
    )
    append(folder, evaluation)
    tell(evaluation, folder)
    path = folder / "game.mp4"
    write_mp4(path, np.stack(film.frames), FRAMES_PER_SECOND // environment.protocol.frame_skip)
    Console().print(f"the first {len(film.frames)} decisions as a film: {path}", soft_wrap=True)
    environment.close()


def next_folder(name: str) -> Path:
    """Return runs/<name>/<n>, where n is one more than the largest number in use."""
    numbers = [int(path.name) for path in (RUNS / name).glob("*") if path.name.isdigit()]
    return RUNS / name / str(max(numbers, default=-1) + 1)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and play the games."""
    parser = Parser(
        prog="dreamcade plan",
        description="Play an Atari game by a search in the emulator itself.",
        default_config_files=[str(CONFIGS / "experiment" / "emulator__uct.yaml")],
    )
    parser.add_argument("-c", "--config", action="config", help="YAML file with options of this command")
    parser.add_function_arguments(plan)
    found = find_configs(arguments)
    parsed = parser.parse_args(found)
    configs = parsed.pop("config", None) or []
    if configs and parsed.name == parser.get_default("name"):
        parsed.name = run_name(configs)
    plan(**vars(parser.instantiate(parsed)))
