"""Plays a game by planning in the emulator: `dreamcade plan --config configs/experiment/emulator__uct.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datamodules.environments.emulator import AtariEmulators
from datamodules.environments.environment import Transition
from datamodules.ranks import generator
from modules.errors import check_range
from pipelines.acting.rules_actor import RulesActor
from pipelines.commands.parser import Parser
from pipelines.console import CONFIGS, check_folder, check_seed, find_config
from pipelines.display.films import write_mp4
from pipelines.display.progress import Rate
from pipelines.evaluation.episodes import play, tell
from pipelines.evaluation.results import Evaluation, append
from pipelines.search.dynamics import EmulatorDynamics
from pipelines.search.evaluators import Rollouts
from pipelines.search.search import Search

RUNS = Path("runs")
FILMED = 1000
"""Decisions of the first game that are kept for its film."""
FRAMES_PER_SECOND = 60


class Watched(AtariEmulators):
    """Games whose first one is filmed, and whose scores a progress bar shows."""

    def watch(self, progress: Progress, task: int) -> None:
        """Tell a bar of every step from now on."""
        self.film: list[np.ndarray] = []
        self.score = np.zeros(self.num_envs)
        self.playing = np.ones(self.num_envs, bool)
        self.progress, self.task = progress, task

    def step(self, actions: np.ndarray) -> Transition:
        """Execute actions (N,)."""
        after = super().step(actions)
        if self.playing[0] and len(self.film) < FILMED:
            self.film.append(after.observation[0].transpose(1, 2, 0))
        self.score += after.reward * self.playing
        self.playing &= ~(after.terminated | after.truncated)
        self.progress.update(self.task, advance=1, score=f"{self.score.mean():,.1f}")  # type: ignore[arg-type]
        return after


def plan(
    search: Search,
    game: str = "Breakout",
    protocol: Literal["atari100k", "machado2018"] = "atari100k",
    episodes: int = 1,
    max_steps: int | None = None,
    rollout_depth: int | None = 20,
    persistence: float | None = None,
    life_loss_ends: bool = True,
    life_loss_reward: float = 0.0,
    reuse: bool = True,
    mode: int | None = None,
    difficulty: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    name: str = "emulator__uct",
) -> None:
    """Play whole games by a search in the emulator, with random play at its leaves: nothing is learned.

    Args:
        search: how it plans.
        game: in any usual spelling.
        protocol: how the game is played; under sticky actions a plan is made for one draw of them.
        episodes: games, each with a seed of its own, which are searched as one batch.
        max_steps: decisions after which a game is given up; null plays it to its end.
        rollout_depth: decisions of random play at a leaf; null plays to the end of the game.
        persistence: mu of random play, at leaves and where nothing was found, that holds an action for n steps, which
            are drawn from n^-mu; null draws anew.
        life_loss_ends: plan for a lost life as if it ended the game.
        life_loss_reward: what a lost life is planned for to earn; scores do not count it.
        reuse: keep what was found under the moves that were made.
        mode: of the game, one of ALE's numbers; null is its default.
        difficulty: likewise.
        seed: of everything.
        out: folder of the result and the film; runs/<name of the config>/<n> unless given.
        name: of the experiment in a report.
    """
    check_range("--episodes", episodes, 1)
    check_range("--max_steps", max_steps, 1)
    check_range("--rollout_depth", rollout_depth, 1)
    check_range("--life_loss_reward", life_loss_reward)
    check_seed("--seed", seed)
    check_folder("--out", out)
    environment = Watched(game, episodes, protocol, "evaluation", (210, 160), "rgb", seed, mode, difficulty)
    dynamics = EmulatorDynamics(
        environment,
        life_loss_ends,
        life_loss_reward,
        persistence=persistence,
        generator=generator(0, "chance", seed),
    )
    rollouts = Rollouts(dynamics, rollout_depth, search.discount, generator=generator(0, "rollouts", seed))
    actor = RulesActor(environment, dynamics, search, rollouts, generator(0, "search", seed), reuse, 0.0, persistence)
    folder = out or next_folder(name)
    title = environment.description["game"]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("score {task.fields[score]}")) as progress:
        task = progress.add_task(f"planning in {title}", total=max_steps, unit="decisions", score="0")
        environment.watch(progress, task)
        played = play(environment, actor, max_steps)
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
        policy=f"{search}, rollouts of {rollout_depth or 'any'} decisions",
        episodes=played,
        final=True,
    )
    append(folder, evaluation)
    tell(evaluation, folder)
    film = folder / "game.mp4"
    write_mp4(film, np.stack(environment.film), FRAMES_PER_SECOND // environment.protocol.frame_skip)
    Console().print(f"the first {len(environment.film)} decisions as a film: {film}", soft_wrap=True)
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
