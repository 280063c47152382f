"""Plans one move and draws its search tree: `dreamcade search runs/muzero__cartpole/0/checkpoints/last.ckpt`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from datamodules.acting import Playing
from datamodules.environments.environment import VectorEnvironment
from datamodules.ranks import generator
from modules.errors import check_range
from modules.imagination import evaluating
from pipelines.acting.actors import ModelActor, PolicyActor, SearchActor
from pipelines.commands.parser import Parser
from pipelines.console import check_folder, check_seed
from pipelines.runs import checkpoints
from pipelines.search.picture import draw_line, draw_tree, frames_of
from pipelines.search.rules import Puct, Stop
from pipelines.search.search import Result, Search


def search(
    checkpoint: Path,
    game: str | None = None,
    simulations: int | None = None,
    steps: int = 40,
    seed: int = 0,
    device: str = "cpu",
    folder: Path | None = None,
) -> None:
    """Search one move in the world model of a checkpoint, and write pictures of the tree and of its principal line.

    The command uses the search of the run's configuration, or PUCT with 50 simulations if the run has no search. The
    search adds no noise.

    Args:
        checkpoint: checkpoint of an agent, or of a world model with its own policy such as MuZero.
        game: game that the checkpoint must be trained on; null accepts any game.
        simulations: number of simulations of the search; null takes the run's number.
        steps: number of steps that the policy plays greedily before the planned move, under the evaluation variant of
            the run's protocol.
        seed: seed of the episode.
        device: device to run the networks on.
        folder: folder to write tree.png and line.png to; null takes the run's folder.
    """
    check_range("--simulations", simulations, 1)
    check_range("--steps", steps, 0)
    check_seed("--seed", seed)
    check_folder("--folder", folder)
    learner, kept = checkpoints.load(checkpoint, device)
    checkpoints.check_world(checkpoint, kept, game)
    model, policy = learner.world_model, learner.require_policy()
    settings = checkpoints.search(checkpoint, kept) or Search(Puct(), Stop(simulations=50))
    if simulations is not None:
        settings = settings.limited(simulations)
    planner = SearchActor(model, policy, settings, generator(0, "search", seed), greedy=True)
    data = checkpoints.world(checkpoint, kept)
    environment = data.evaluation_environment(1, seed)
    state = walk(environment, PolicyActor(model, policy, generator(0, "actor", seed), greedy=True), steps)
    meanings = environment.action_meanings
    environment.close()
    with torch.no_grad(), evaluating(model, policy):
        planner.choose(state, None)  # the first call loads compiled code, which takes longer than a search
        start = time.perf_counter()
        planner.choose(state, None)
    found = planner.found
    assert found is not None
    rate = found.simulations[0] / (time.perf_counter() - start)
    folder = folder or checkpoints.folder(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{data.name} after {steps} steps, {settings}"
    tree, line = folder / "tree.png", folder / "line.png"
    draw_tree(found.tree, tree, meanings, frames_of(model), title=title)
    draw_line(found.tree, line, meanings, frames_of(model), title=f"{title}: the principal line")
    console = Console()
    console.print(title, soft_wrap=True)
    console.print(table(found, meanings))
    console.print(
        f"value {found.value[0]:.3f}, the network alone says {found.network_value[0]:.3f}; "
        f"depth {found.depth[0]:.1f}, {found.max_depth[0]} at most; {rate:,.0f} simulations/s",
        soft_wrap=True,
    )
    console.print(f"the tree: {tree}; its principal line: {line}", soft_wrap=True)


def walk(environment: VectorEnvironment, actor: ModelActor, steps: int) -> Tensor:
    """Play that many steps in one environment, and further steps while the episode is over.

    Returns:
        The model's state (1, *state_shape) at the last step.
    """
    game = Playing(environment)
    actions, _ = actor.act(game.moment(actor))
    step = 0
    while step < steps or game.closed[0]:
        game.step(actions)
        actions, _ = actor.act(game.moment(actor))
        step += 1
    assert actor.state is not None
    return actor.state


def table(found: Result, meanings: Sequence[str]) -> Table:
    """Return a table of prior, visits, Q and policy of every action."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("action", "prior", "visits", "Q", "policy", ""):
        table.add_column(name, justify="left" if name in ("action", "") else "right", no_wrap=True)
    for action in np.argsort(-found.visits[0], kind="stable"):
        table.add_row(
            meanings[action],
            f"{found.prior[0, action]:.3f}",
            str(found.visits[0, action]),
            "-" if np.isnan(found.q[0, action]) else f"{found.q[0, action]:.3f}",
            f"{found.policy[0, action]:.3f}",
            "played" if action == found.action[0] else "",
        )
    return table


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and plan the move."""
    parser = Parser(prog="dreamcade search", description="Search one move with a checkpoint, and draw the tree.")
    parser.add_function_arguments(search, as_positional=True)
    search(**vars(parser.instantiate(parser.parse_args(list(arguments)))))
