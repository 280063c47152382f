"""Plays real episodes with a trained policy: `dreamcade evaluate runs/dqn/0/checkpoints/last.ckpt`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning import LightningDataModule

from modules.agent import Agent
from modules.errors import UserError
from pipelines import checkpoints
from pipelines.evaluation.episodes import evaluate as evaluate_agent
from pipelines.evaluation.episodes import tell
from pipelines.evaluation.results import append
from pipelines.parser import Parser


def evaluate(
    checkpoint: Path,
    game: str | None = None,
    episodes: int = 100,
    policy: Literal["greedy", "sampled"] = "greedy",
    epsilon: float = 0.0,
    max_steps: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    out: Path | None = None,
) -> None:
    """Play whole episodes with the policy of a checkpoint, under the evaluation variant of its protocol.

    Args:
        checkpoint: of an agent.
        game: what the checkpoint must be of; null takes any.
        episodes: to play, each with a seed of its own.
        policy: take the likeliest action, or draw as in training.
        epsilon: probability of a random action instead.
        max_steps: agent steps after which an episode is given up; null plays it to its end.
        seed: of the episodes.
        device: to run the networks on.
        out: folder whose evaluations.jsonl the result is added to; the run's own unless given.
    """
    if episodes < 1:
        raise UserError(f"--episodes must be at least 1: got {episodes}")
    agent, kept = checkpoints.load(checkpoint, device)
    if not isinstance(agent, Agent):
        raise UserError(f"{checkpoint} holds a {type(agent).__name__} without a policy: an agent's is needed")
    checkpoints.check_world(checkpoint, kept, game)
    for key in ("description", "env_steps"):
        if key not in kept:
            raise UserError(
                f"{checkpoint} keeps no {key}: train with the callback pipelines.callbacks.openings.Openings"
            )
    data = checkpoints.instantiate(LightningDataModule, kept["config"]["data"], checkpoint)
    data.described = kept["description"]
    folder = checkpoint.resolve().parent.parent
    evaluation = evaluate_agent(
        agent,
        data,
        episodes=episodes,
        seed=seed,
        greedy=policy == "greedy",
        epsilon=epsilon,
        max_steps=max_steps,
        run_seed=kept["config"]["seed_everything"],
        env_steps=kept["env_steps"],
        updates=kept["global_step"],
        experiment=folder.parent.name if folder.name.isdigit() else folder.name,
        final=True,
        checkpoint=str(checkpoint),
    )
    append(out or folder, evaluation)
    tell(evaluation, out or folder)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and evaluate."""
    parser = Parser(prog="dreamcade evaluate", description="Play whole episodes with the policy of a checkpoint.")
    parser.add_function_arguments(evaluate, as_positional=True)
    evaluate(**vars(parser.instantiate(parser.parse_args(list(arguments)))))
