"""Plays real episodes with a trained policy: `dreamcade evaluate runs/dqn/0/checkpoints/last.ckpt`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from modules.errors import UserError, check_range
from pipelines.acting.exploration import Exploration
from pipelines.acting.play import PolicyPlay, SearchPlay
from pipelines.commands.parser import Parser
from pipelines.console import check_folder, check_seed
from pipelines.evaluation.episodes import evaluate as evaluate_agent
from pipelines.evaluation.episodes import tell
from pipelines.evaluation.results import append
from pipelines.runs import checkpoints


def evaluate(
    checkpoint: Path,
    game: str | None = None,
    episodes: int = 100,
    policy: Literal["greedy", "sampled"] = "greedy",
    epsilon: float = 0.0,
    simulations: int | None = None,
    max_steps: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    out: Path | None = None,
) -> None:
    """Play whole episodes with the policy of a checkpoint, under the evaluation variant of its protocol.

    Args:
        checkpoint: checkpoint of an agent, or of a world model with its own policy such as MuZero.
        game: game that the checkpoint must be trained on; null accepts any game.
        episodes: number of episodes to play, each with a different seed.
        policy: way to choose actions: "greedy" takes the likeliest action, "sampled" draws one as in training.
        epsilon: probability of a random action instead of the policy's action.
        simulations: number of simulations per move of the run's search; 0 plays the policy without search, null plays
            as the run's evaluations did.
        max_steps: number of agent steps after which an episode is cut; null plays it to its end.
        seed: seed of the episodes.
        device: device to run the networks on.
        out: folder whose evaluations.jsonl the result is appended to; null takes the run's folder.
    """
    check_range("--episodes", episodes, 1)
    check_range("--epsilon", epsilon, 0, 1)
    check_range("--simulations", simulations, 0)
    check_range("--max_steps", max_steps, 1)
    check_seed("--seed", seed)
    check_folder("--out", out)
    learner, kept = checkpoints.load(checkpoint, device)
    learner.require_policy()
    search = None if simulations == 0 else checkpoints.search(checkpoint, kept)
    if simulations and search is None:
        raise UserError(f"the run of {checkpoint} has no search: leave --simulations out")
    if simulations and search is not None:
        search = search.limited(simulations)
    exploration = Exploration(epsilon)
    checkpoints.check_world(checkpoint, kept, game)
    data = checkpoints.world(checkpoint, kept)
    folder = checkpoints.folder(checkpoint)
    evaluation = evaluate_agent(
        learner,
        data,
        episodes=episodes,
        seed=seed,
        actor=PolicyPlay(exploration) if search is None else SearchPlay(search, exploration),
        greedy=policy == "greedy" or search is not None,
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
    """Parse the command line and play the episodes."""
    parser = Parser(prog="dreamcade evaluate", description="Play whole episodes with the policy of a checkpoint.")
    parser.add_function_arguments(evaluate, as_positional=True)
    evaluate(**vars(parser.instantiate(parser.parse_args(list(arguments)))))
