"""Plays real episodes with a trained policy: `dreamcade evaluate runs/dqn/0/checkpoints/last.ckpt`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modules.errors import UserError, check_range
from pipelines.acting.play import Play
from pipelines.commands import actors
from pipelines.commands.parser import Parser
from pipelines.console import check_folder, check_seed
from pipelines.evaluation.episodes import evaluate as evaluate_agent
from pipelines.evaluation.episodes import tell
from pipelines.evaluation.results import append
from pipelines.runs import checkpoints

REPLACED = {
    "--epsilon": "--actor.exploration.epsilon",
    "--simulations": "--actor.search.stop.simulations, or --actor PolicyPlay to play without a search",
    "--policy": "--greedy true or --greedy false",
}


def evaluate(
    checkpoint: Path,
    actor: Play | None = None,
    greedy: bool = True,
    game: str | None = None,
    episodes: int = 100,
    max_steps: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    out: Path | None = None,
    film: Path | None = None,
) -> None:
    """Play whole episodes by a checkpoint, under the evaluation variant of its protocol.

    Args:
        checkpoint: checkpoint of an agent, or of a world model with its own policy such as MuZero.
        actor: actor that plays, such as PolicyPlay, SearchPlay, RulesPlay or RandomPlay; null takes the actor that the
            run evaluated, whose settings `--actor.KEY` changes.
        greedy: play the best action without noise; false draws actions as in training.
        game: game that the checkpoint must be trained on; null accepts any game.
        episodes: number of episodes to play, each with a different seed.
        max_steps: number of agent steps after which an episode is cut; null plays it to its end.
        seed: seed of the episodes.
        device: device to run the networks on.
        out: folder whose evaluations.jsonl the result is appended to; null takes the run's folder.
        film: file, .gif or .mp4, that a film of the first episode is written to; null writes no film.
    """
    check_range("--episodes", episodes, 1)
    check_range("--max_steps", max_steps, 1)
    check_seed("--seed", seed)
    check_folder("--out", out)
    if film is not None and film.suffix not in (".gif", ".mp4"):
        raise UserError(f"--film {film} must end with .gif or .mp4")
    check_folder("--film", None if film is None else film.parent)
    learner, kept = checkpoints.load(checkpoint, device)
    checkpoints.check_world(checkpoint, kept, game)
    data = checkpoints.world(checkpoint, kept)
    if actor is None and (named := checkpoints.actor(checkpoint, kept)) is not None:
        actor = checkpoints.instantiate(Play, named, checkpoint)
    folder = checkpoints.folder(checkpoint)
    evaluation = evaluate_agent(
        learner,
        data,
        episodes=episodes,
        seed=seed,
        actor=actor,
        greedy=greedy,
        max_steps=max_steps,
        film=film,
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
    parser = Parser(prog="dreamcade evaluate", description="Play whole episodes by a checkpoint.")
    parser.add_function_arguments(evaluate, as_positional=True)
    evaluate(**actors.parse(parser, arguments, REPLACED))
