"""Playing real episodes to their end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningModule
from rich.console import Console
from rich.markup import escape

from datamodules.collector import Actor
from datamodules.environments.environment import VectorEnvironment
from datamodules.replay_data import ReplayData
from modules.agent import policy_of, world_model
from modules.errors import UserError
from pipelines.acting.actors import PolicyActor, SearchActor
from pipelines.display.progress import counter
from pipelines.evaluation.results import FILE, Episode, Evaluation, human_normalized
from pipelines.search.search import Search

Watch = Callable[[Any, np.ndarray, float], None]
"""Told after every move: who made it, in which environments (N,) it counts, and the seconds that it took."""


def play(
    environment: VectorEnvironment,
    actor: Actor,
    max_steps: int | None = None,
    advance: Callable[[int], None] = lambda finished: None,
    watch: Watch = lambda actor, playing, seconds: None,
) -> list[Episode]:
    """Play one episode in every environment: short ones are not counted more often than long ones.

    Args:
        environment: of the evaluation variant; each of its N environments has a seed of its own.
        actor: who plays; all episodes open at once.
        max_steps: agent steps after which an episode is given up as unfinished.
        advance: told how many episodes ended, whenever some did.
        watch: told of every move.
    """
    num_envs = environment.num_envs
    observation = environment.reset()
    is_first = np.ones(num_envs, bool)
    playing = np.ones(num_envs, bool)
    returns, lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
    closed = np.zeros(num_envs, bool)
    while playing.any() and (max_steps is None or lengths.max() < max_steps):
        start = time.perf_counter()
        actions, _ = actor.act(observation, is_first)
        watch(actor, playing, time.perf_counter() - start)
        after = environment.step(actions)
        returns += after.reward * playing
        lengths += playing
        observation, is_first = after.observation, closed
        closed = after.terminated | after.truncated
        advance(int((playing & closed).sum()))
        playing &= ~closed
    return [
        {"seed": int(seed), "return": float(total), "length": int(length), "finished": not unfinished}
        for seed, total, length, unfinished in zip(environment.seeds, returns, lengths, playing, strict=True)
    ]


def evaluate(
    module: LightningModule,
    data: ReplayData,
    episodes: int,
    seed: int,
    greedy: bool = True,
    epsilon: float = 0.0,
    search: Search | None = None,
    max_steps: int | None = None,
    show: bool = True,
    watch: Watch = lambda actor, playing, seconds: None,
    *,
    run_seed: int,
    **moment: Any,
) -> Evaluation:
    """Let a module play whole episodes under the evaluation variant of its protocol.

    Args:
        module: who plays: an agent, or a world model that has a policy of its own.
        data: of the world that it learned.
        episodes: to play.
        seed: of the episodes and of its own draws.
        greedy: play the likeliest action; false draws as in training.
        epsilon: probability of a random action instead.
        search: plan every move, and play the best one.
        max_steps: agent steps after which an episode is given up as unfinished.
        show: a progress bar.
        watch: told of every move.
        run_seed: of the run that trained it.
        **moment: fields of the Evaluation that say when in that run it is.
    """
    try:
        environment = data.evaluation_environment(episodes, seed)
    except (TypeError, KeyError, ValueError) as error:  # a store or checkpoint of anybody's says what to play
        raise UserError(f"{data.name} cannot be played as it was described: {error}") from None
    model, policy, draws = world_model(module), policy_of(module), np.random.default_rng(seed)
    actor: Actor = PolicyActor(model, policy, draws, greedy=greedy, epsilon=epsilon)
    if search is not None:
        actor = SearchActor(model, policy, search, draws, greedy=True, epsilon=epsilon)
    with counter(f"evaluating on {data.name}", episodes, "episodes", show) as advance:
        played = play(environment, actor, max_steps, advance, watch)
    environment.close()
    description = environment.description
    return Evaluation(
        seed=run_seed,
        environment=description["environment"],
        game=description.get("game") or description["id"],
        protocol=description["protocol"],
        policy=str(search or ("greedy" if greedy else "sampled")) + (f", epsilon {epsilon:g}" if epsilon else ""),
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
