"""Playing real episodes to their end."""

from __future__ import annotations

import time
from collections.abc import Callable
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
from pipelines.display.progress import counter
from pipelines.evaluation.results import FILE, Episode, Evaluation, human_normalized


class Move(NamedTuple):
    """One move in every environment, as those who watch are told of it."""

    actor: Any
    """Who made it."""
    counts: np.ndarray
    """(N,) bool: the episode that is evaluated was still going on."""
    seconds: float
    """Time that the actor took."""
    after: Transition
    """What it did."""


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
        environment: N environments of the evaluation variant, each with a seed of its own.
        actor: who plays; all episodes open at once.
        max_steps: agent steps after which an episode is given up as unfinished.
        advance: called with the number of episodes that ended, whenever some did.
        watch: called with every move.
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
    *,
    run_seed: int,
    **moment: Any,
) -> Evaluation:
    """Let a learner play whole episodes under the evaluation variant of its protocol.

    Args:
        learner: an agent, or a world model that has a policy of its own.
        data: the world that it learned.
        episodes: number of episodes to play.
        seed: seed of the episodes and of the actor's own draws.
        actor: who plays; null is the learner's policy.
        greedy: play the best action, without noise; false draws as in training.
        max_steps: agent steps after which an episode is given up as unfinished.
        show: show a progress bar.
        watch: called with every move.
        run_seed: seed of the run that trained it.
        **moment: fields of the Evaluation that say when in that run it is.
    """
    try:
        environment = data.evaluation_environment(episodes, seed)
    except (TypeError, KeyError, ValueError) as error:  # a store or checkpoint of anybody's says what to play
        raise UserError(f"{data.name} cannot be played as it was described: {error}") from None
    draws = np.random.default_rng(seed)
    way = actor or PolicyPlay()
    player = way.actor(Stage(environment, lambda purpose: draws, learner.world_model, learner.policy, greedy))
    with counter(f"evaluating on {data.name}", episodes, "episodes", show) as advance:
        played = play(environment, player, max_steps, advance, watch)
    environment.close()
    description = environment.description
    return Evaluation(
        seed=run_seed,
        environment=description["environment"],
        game=description.get("game") or description["id"],
        protocol=description["protocol"],
        policy=way.describe(greedy),
        episodes=played,
        **moment,
    )


def tell(evaluation: Evaluation, folder: Path) -> None:
    """Print what an evaluation found, and where it lies."""
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
