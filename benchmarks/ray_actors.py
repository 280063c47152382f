"""What a second Ray actor brings, and what one that is killed costs.

    python benchmarks/ray_actors.py [--repeats 3] [--rows 1500]

The DQN agent's network plays eight environments of Pong, greedily but for its epsilon, in one or in two Ray actors with
one thread each; this process appends what they send to the run's store, as it does while it learns. The rates are of
real steps per second, after the actors have started, of one and two in turn; "ratio" is that of their medians, and
"beside_no_ray" that of one actor to this process alone, with one thread. "steps_lost" are the rows that differ, or are
missing, where one of two actors is killed half-way, from those of two that are left alone.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import ray
import report
import smoke
import torch

from datamodules.atari import AtariReplay
from datamodules.collector import Collector
from datamodules.ranks import generator
from datamodules.settings import Envs, Storage
from modules.agent import Agent
from modules.identity import IdentityModel
from modules.policies.q_learning import QLearning
from pipelines.acting.actors import PolicyActor
from pipelines.acting.players import CollectChunk, LocalPlayers, Players
from pipelines.acting.ray_players import PlayerSpec, RayPlayers
from pipelines.callbacks.acting.ray_actors import connect

NUM_ENVS, CHUNK_ROWS, WARM_UP = 8, 64, 128


def agent(data: AtariReplay) -> Agent:
    """Make the networks of DQN, untrained."""
    torch.manual_seed(0)
    agent = Agent(IdentityModel(), QLearning(), policy_learns_from="real")
    agent.build_from(data.spec)
    return agent


def players(num_actors: int, data: AtariReplay) -> Players:
    """Let so many Ray actors play, or this process where there are none."""
    module = agent(data)

    def spec(number: int, envs: int) -> PlayerSpec:
        actor = PolicyActor(module.world_model, module.policy, generator(0, f"policy{number}", 0))
        return PlayerSpec(module, {"play": actor}, data, envs, number, 0)

    if num_actors == 0:
        data.num_threads = 1
        return LocalPlayers(Collector(data.environment, data.store), spec(0, NUM_ENVS).actors)
    specs = [spec(number, NUM_ENVS // num_actors) for number in range(num_actors)]
    return RayPlayers(data, module, specs, lag=0)


def play(num_actors: int, rows: int, kill: bool = False) -> tuple[float, list[torch.Tensor]]:
    """Return real steps per second, and every row of the store."""
    with tempfile.TemporaryDirectory() as folder:
        data = AtariReplay(game="Pong", envs=Envs(NUM_ENVS), storage=Storage(NUM_ENVS * rows), seed=0)
        data.store = data.create(Path(folder) / "store")
        if num_actors:
            connect(None, num_actors)
        playing = players(num_actors, data)
        chunks = [CollectChunk("play", end, Fraction(0)) for end in [*range(CHUNK_ROWS, rows, CHUNK_ROWS), rows]]
        victim = 0
        if isinstance(playing, RayPlayers) and kill:
            victim = ray.get(playing._players[1].__ray_call__.remote(lambda player: os.getpid()))
        playing.ask(0, lambda updates: chunks)
        begin = began = 0.0
        for chunk in chunks:
            for _ in playing.play(chunk):
                pass
            if not begin and data.store.rows >= WARM_UP:
                begin, began = time.perf_counter(), data.store.rows
            if victim and data.store.rows >= rows // 2:
                os.kill(victim, signal.SIGKILL)
                victim = 0
        rate = NUM_ENVS * (data.store.rows - began) / (time.perf_counter() - begin)
        batch = data.store.gather(np.arange(NUM_ENVS), np.zeros(NUM_ENVS, np.int64), data.store.rows)
        if isinstance(playing, RayPlayers):
            playing.close()
            ray.shutdown()
        return rate, batch.tensors()


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3, smoke=1, help="turns of every number of actors")
    parser.add_argument("--rows", type=int, default=1500, smoke=200, help="rows of every environment")
    options = parser.parse_args()
    torch.set_num_threads(1)
    turns = [{number: play(number, options.rows)[0] for number in (0, 1, 2)} for _ in range(options.repeats)]
    rate = {number: float(np.median([turn[number] for turn in turns])) for number in (0, 1, 2)}
    (_, alone), (_, killed) = play(2, options.rows), play(2, options.rows, kill=True)
    same = torch.stack([(a == b).reshape(*a.shape[:2], -1).all(dim=2) for a, b in zip(alone, killed, strict=True)]).all(
        dim=0
    )
    report.write(
        "ray_actors",
        {
            "ratio": round(rate[2] / rate[1], 2),
            "steps_per_second": {str(number): round(value) for number, value in rate.items() if number},
            "beside_no_ray": round(rate[1] / rate[0], 2),
            "no_ray": round(rate[0]),
            "steps_lost": int((~same).sum()),
            "steps": same.numel(),
            "repeats": options.repeats,
        },
        options,
    )


if __name__ == "__main__":
    main()
