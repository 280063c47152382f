"""Plays whole real episodes to evaluate an actor."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape

from datamodules.acting import Actor, Playing
from datamodules.environments.environment import Transition, VectorEnvironment
from datamodules.replay_data import ReplayData
from modules.errors import UserError
from modules.learner import Learner
from pipelines.acting.play import Play, PolicyPlay, Stage
from pipelines.display.films import write_film
from pipelines.display.progress import counter
from pipelines.evaluation.results import FILE, Episode, Evaluation, human_normalized
from pipelines.machine.provenance import now


class Move(NamedTuple):
    """One move in every environment, which is passed to `watch`."""

    actor: Any
    """Actor that made the move."""
    counts: np.ndarray
    """(N,) bool: the evaluated episode was still running."""
    seconds: float
    """Seconds that the actor took."""
    after: Transition
    """Result of the move."""


FILM_FPS = 15
"""Moves per second of a film: an Atari move takes 4 frames of the emulator's 60 a second."""
Watch = Callable[[Move], None]


def play(
    environment: VectorEnvironment,
    actor: Actor,
    max_steps: int | None = None,
    advance: Callable[[int], None] = lambda finished: None,
    watch: Watch = lambda move: None,
) -> list[Episode]:
    """Play one episode in every environment: short ones are not counted more often than long ones.

    Args:
        environment: N environments of the evaluation variant, each with a different seed.
        actor: actor that plays; all episodes start at the same time.
        max_steps: agent steps after which an episode is stopped as unfinished; None sets no limit.
        advance: function that is called after every step with the number of episodes that ended.
        watch: function that is called with every move.
    """
    num_envs = environment.num_envs
    playing = Playing(environment)
    counts = np.ones(num_envs, bool)
    returns, lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
    while counts.any() and (max_steps is None or lengths.max() < max_steps):
        start = time.perf_counter()
        actions, _ = actor.act(playing.moment(actor))
        seconds = time.perf_counter() - start
        after = playing.step(actions)
        watch(Move(actor, counts, seconds, after))
        returns += after.reward * counts
        lengths += counts
        advance(int((counts & playing.closed).sum()))
        counts = counts & ~playing.closed
    return [
        {"seed": int(seed), "return": float(total), "length": int(length), "finished": not unfinished}
        for seed, total, length, unfinished in zip(environment.seeds, returns, lengths, counts, strict=True)
    ]


def evaluate(
    learner: Learner,
    data: ReplayData,
    episodes: int,
    seed: int,
    actor: Play | None = None,
    greedy: bool = True,
    max_steps: int | None = None,
    show: bool = True,
    watch: Watch = lambda move: None,
    film: Path | None = None,
    *,
    run_seed: int,
    **moment: Any,
) -> Evaluation:
    """Let a learner play whole episodes under the evaluation variant of its protocol.

    Args:
        learner: agent, or world model with its own policy.
        data: datamodule of the world that the learner was trained on.
        episodes: number of episodes to play.
        seed: seed of the episodes and of the actor's draws.
        actor: actor that plays; null takes the learner's policy.
        greedy: play the best action without noise; false draws actions as in training.
        max_steps: agent steps after which an episode is stopped as unfinished; null sets no limit.
        show: show a progress bar.
        watch: function that is called with every move.
        film: file, .gif or .mp4, that a film of the first episode is written to; null writes no film.
        run_seed: seed of the run that trained the learner.
        **moment: fields of the Evaluation that locate the evaluation in the run.
    """
    way = actor or PolicyPlay()
    try:
        environment = (data.screened_environment if film else partial(way.environment, data))(episodes, seed)
    except (TypeError, KeyError, ValueError) as error:  # the description may come from an unknown source
        raise UserError(f"{data.name} cannot be created from its description: {error}") from None
    if film is not None and environment.screens() is None:
        raise UserError(f"{data.name} has no screen: only Atari games can be filmed")
    draws = np.random.default_rng(seed)
    frames: list[np.ndarray] = []

    def watch_screen(move: Move) -> None:
        watch(move)
        if film is not None and move.counts[0]:
            frames.append(environment.screens()[0])  # type: ignore[index]

    player = way.actor(Stage(environment, lambda purpose: draws, learner.world_model, learner.policy, greedy))
    with counter(f"evaluating on {data.name}", episodes, "episodes", show) as advance:
        played = play(environment, player, max_steps, advance, watch_screen)
    environment.close()
    if film is not None:
        write_film(film, np.stack(frames), FILM_FPS)
    description = environment.description
    return Evaluation(
        seed=run_seed,
        environment=description["environment"],
        game=description.get("game") or description["id"],
        protocol=description["protocol"],
        policy=way.describe(greedy),
        episodes=played,
        date=now(),
        **moment,
    )


def tell(evaluation: Evaluation, folder: Path) -> None:
    """Print the result of an evaluation and the path of its file."""
    normalized = human_normalized(evaluation.game, evaluation.score)
    human = "" if normalized is None else f", human-normalised {normalized:.2f}"
    unfinished = sum(not episode["finished"] for episode in evaluation.episodes)
    line = (
        f"{evaluation.game} after {evaluation.env_steps} real steps: mean return {evaluation.score:.1f} "
        f"over {len(evaluation.episodes)} episodes{human}"
        + (f", {unfinished} of them given up unfinished" if unfinished else "")
        + f"; every one is in {folder / FILE}"
    )
    Console().print(escape(line), soft_wrap=True)
