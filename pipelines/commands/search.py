"""Searches one move and draws the tree: `dreamcade search runs/muzero__cartpole/0/checkpoints/last.ckpt`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from datamodules.acting import Actor, Playing
from datamodules.environments.emulator import AtariEmulators
from datamodules.environments.environment import VectorEnvironment
from datamodules.ranks import generator
from modules.errors import UserError, check_range
from modules.imagination import evaluating
from pipelines.acting.actors import PolicyActor, SearchActor
from pipelines.acting.play import Play, Stage
from pipelines.acting.rules_actor import RulesActor
from pipelines.commands import actors
from pipelines.commands.parser import Parser
from pipelines.console import check_folder, check_seed
from pipelines.runs import checkpoints
from pipelines.search.picture import draw_line, draw_tree, frames_of, screens_of
from pipelines.search.search import Result

REPLACED = {"--simulations": "--actor.search.stop.simulations"}
DEFAULT = {
    "class_path": "pipelines.acting.play.SearchPlay",
    "init_args": {
        "search": {"class_path": "pipelines.search.search.Search", "init_args": {"stop": {"simulations": 50}}}
    },
}
"""Actor for runs that have no search: PUCT with 50 simulations."""


def search(
    checkpoint: Path,
    actor: Play | None = None,
    game: str | None = None,
    steps: int = 40,
    seed: int = 0,
    device: str = "cpu",
    folder: Path | None = None,
) -> None:
    """Search one move in the world model of a checkpoint, and write pictures of the tree and of its principal line.

    The search adds no noise.

    Args:
        checkpoint: checkpoint of an agent, or of a world model with its own policy such as MuZero.
        actor: actor that searches, a SearchPlay in the world model or a RulesPlay in the emulator; null takes the run's
            own, whose settings `--actor.KEY` changes, or PUCT with 50 simulations if the run has no search.
        game: game that the checkpoint must be trained on; null accepts any game.
        steps: number of steps that the policy plays greedily before the planned move, under the evaluation variant of
            the run's protocol.
        seed: seed of the episode.
        device: device to run the networks on.
        folder: folder to write tree.png and line.png to; null takes the run's folder.
    """
    check_range("--steps", steps, 0)
    check_seed("--seed", seed)
    check_folder("--folder", folder)
    learner, kept = checkpoints.load(checkpoint, device)
    checkpoints.check_world(checkpoint, kept, game)
    model, policy = learner.world_model, learner.require_policy()
    data = checkpoints.world(checkpoint, kept)
    if actor is None:
        named = checkpoints.actor(checkpoint, kept, searches=True) or DEFAULT
        actor = checkpoints.instantiate(Play, named, checkpoint)
    environment = actor.environment(data, 1, seed)
    planner = actor.actor(Stage(environment, lambda purpose: generator(0, purpose, seed), model, policy, greedy=True))
    if not isinstance(planner, SearchActor | RulesActor):
        raise UserError(f"{type(actor).__name__} does not search: expected --actor SearchPlay or RulesPlay")
    walker = PolicyActor(model, policy, generator(0, "actor", seed), greedy=True)
    moment = walk(environment, walker, steps).moment(planner)
    if isinstance(planner, SearchActor):
        assert walker.state is not None
        frames, alone = frames_of(model), "the network's estimate"
        think = partial(planner.choose, walker.state, moment.legal_actions)
    else:
        assert isinstance(environment, AtariEmulators)
        planner.dynamics.look = True
        frames, alone = screens_of(environment), "the estimate by random play"
        think = partial(planner.act, moment._replace(is_first=np.ones(1, bool)))  # every call grows a new tree
    with torch.no_grad(), evaluating(model, policy):
        think()  # the first call loads compiled code, which takes longer than a search
        start = time.perf_counter()
        think()
    found = planner.found
    assert found is not None
    rate = found.simulations[0] / (time.perf_counter() - start)
    folder = folder or checkpoints.folder(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    meanings = environment.action_meanings
    title = f"{data.name} after {steps} steps, {actor.describe(greedy=True)}"
    tree, line = folder / "tree.png", folder / "line.png"
    draw_tree(found.tree, tree, meanings, frames, title=title)
    draw_line(found.tree, line, meanings, frames, title=f"{title}: the principal line")
    environment.close()
    console = Console()
    console.print(title, soft_wrap=True)
    console.print(table(found, meanings))
    console.print(
        f"value {found.value[0]:.3f}, {alone} {found.network_value[0]:.3f}; "
        f"depth {found.depth[0]:.1f}, {found.max_depth[0]} at most; {rate:,.0f} simulations/s",
        soft_wrap=True,
    )
    console.print(f"the tree: {tree}; its principal line: {line}", soft_wrap=True)


def walk(environment: VectorEnvironment, actor: Actor, steps: int) -> Playing:
    """Play a number of steps in one environment, and further steps while the episode is over.

    Returns:
        The running episode. The actor has observed its present moment, and its next action is not played.
    """
    game = Playing(environment)
    actions, _ = actor.act(game.moment(actor))
    step = 0
    while step < steps or game.closed[0]:
        game.step(actions)
        actions, _ = actor.act(game.moment(actor))
        step += 1
    return game


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
    search(**actors.parse(parser, arguments, REPLACED, searches=True, default=DEFAULT))
