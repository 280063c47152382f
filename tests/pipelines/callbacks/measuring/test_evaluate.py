"""Evaluations against plain Gymnasium, and against the plain rules of DotWorld."""

from types import SimpleNamespace

import gymnasium
import lightning
import numpy as np
import pytest
import torch

from datamodules.acting import Moment
from datamodules.control import ControlReplay
from datamodules.settings import Sampling, Storage
from modules.agent import Agent, Rounds
from modules.errors import UserError
from modules.identity import IdentityModel
from modules.optimization import Optimization
from modules.policies.actor_critic import Reinforce
from modules.policies.q_learning import QLearning
from modules.policies.q_network import Network
from pipelines.acting.actors import RandomActor
from pipelines.acting.exploration import Exploration
from pipelines.acting.play import PolicyPlay
from pipelines.callbacks.acting.collect import Collect
from pipelines.callbacks.measuring.evaluate import Evaluate
from pipelines.evaluation.episodes import play
from pipelines.evaluation.results import read
from tests.fakes import DotWorld, PerfectModel


def run(folder, evaluate, updates=3, policy=None, rounds=None, steps_per_update=1.0):
    """Train an agent on CartPole-v1 a little."""
    agent = Agent(
        IdentityModel(),
        policy or QLearning(Network(hidden=(16,)), optimization=Optimization(0.05)),
        "real",
        rounds or Rounds(),
    )
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_steps=updates,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[evaluate, Collect(prefill=20, steps_per_update=steps_per_update)],
    )
    data = ControlReplay(id="CartPole-v1", sampling=Sampling(8, 2), storage=Storage(100), seed=5)
    trainer.fit(agent, datamodule=data)
    return agent


def replayed(agent, episode) -> tuple[float, int]:
    """Play an episode greedily, by its seed alone."""
    environment = gymnasium.make("CartPole-v1")
    observation, _ = environment.reset(seed=episode["seed"])
    total, length, over = 0.0, 0, False
    while not over:
        with torch.no_grad():
            values = agent.policy.online(torch.from_numpy(observation)[None])
        observation, reward, terminated, truncated, _ = environment.step(int(values.argmax()))
        total, length, over = total + reward, length + 1, terminated or truncated
    return total, length


def test_returns_are_those_that_gymnasium_pays(tmp_path):
    agent = run(tmp_path, Evaluate(final_episodes=6))
    (evaluation,) = read(tmp_path)
    assert evaluation.final
    assert (evaluation.updates, evaluation.env_steps) == (3, 22)
    assert (evaluation.game, evaluation.environment, evaluation.policy) == ("CartPole-v1", "control", "greedy")
    assert evaluation.protocol == {"name": "gymnasium", "max_episode_steps": 500}
    assert len({episode["seed"] for episode in evaluation.episodes}) == 6
    for episode in evaluation.episodes:
        assert (episode["return"], episode["length"]) == replayed(agent, episode)
        assert episode["finished"]
    assert len({episode["length"] for episode in evaluation.episodes}) > 1


def test_seeds_are_those_of_the_run_and_the_moment(tmp_path):
    for name in ("a", "b"):
        run(tmp_path / name, Evaluate(every=1, episodes=2, final_episodes=2), policy=Reinforce(hidden=[4]))
    seeds = [[[episode["seed"] for episode in e.episodes] for e in read(tmp_path / name)] for name in ("a", "b")]
    assert seeds[0] == seeds[1]
    assert len({seed for drawn in seeds[0] for seed in drawn}) > 4


def test_agents_are_evaluated_at_the_end_of_rounds(tmp_path):
    rounds = Rounds(model_updates=2, policy_updates=1, together=False)
    run(tmp_path, Evaluate(every=1, episodes=1, final_episodes=1), updates=10, rounds=rounds)
    evaluations = read(tmp_path)
    assert [(e.updates, e.env_steps, e.final) for e in evaluations] == [
        *((3, 22, False), (6, 25, False), (9, 28, False), (10, 29, True))
    ]


def test_agents_are_evaluated_every_so_many_steps(tmp_path):
    """With the steps that an update had learned from: 20, 23, 26, ..."""
    run(tmp_path, Evaluate(every=10, episodes=1, final_episodes=1), updates=9, steps_per_update=3.0)
    assert [e.env_steps for e in read(tmp_path)] == [20, 32, 41, 44]
    run(tmp_path / "end", Evaluate(every=0, final_episodes=1))
    assert [e.final for e in read(tmp_path / "end")] == [True]


def test_what_is_given_up_is_flagged(tmp_path):
    """A pole that is left alone stands for 8 steps at least."""
    run(tmp_path / "5", Evaluate(final_episodes=4, max_steps=5))
    (evaluation,) = read(tmp_path / "5")
    assert [(e["length"], e["return"], e["finished"]) for e in evaluation.episodes] == [(5, 5.0, False)] * 4
    run(
        tmp_path / "all",
        Evaluate(final_episodes=12, greedy=False, actor=PolicyPlay(Exploration(epsilon=0.5))),
        policy=Reinforce(hidden=[4]),
    )
    (evaluation,) = read(tmp_path / "all")
    assert evaluation.policy == "sampled, epsilon 0.5"
    lengths = sorted(episode["length"] for episode in evaluation.episodes)
    assert lengths[0] < lengths[6] < lengths[11]
    run(
        tmp_path / "some",
        Evaluate(final_episodes=12, greedy=False, actor=PolicyPlay(Exploration(epsilon=0.5)), max_steps=lengths[6]),
        policy=Reinforce(hidden=[4]),
    )
    (evaluation,) = read(tmp_path / "some")
    finished = [episode["length"] for episode in evaluation.episodes if episode["finished"]]
    assert sorted(finished) == [length for length in lengths if length <= lengths[6]]
    assert len(evaluation.episodes) == 12


def test_every_environment_plays_one_episode():
    """Rewards, ends and limits after the first do not count."""
    environment = DotWorld(40, limit=12, seed=4)
    environment.seeds = np.arange(40)
    told = []
    episodes = play(environment, RandomActor(4, np.random.default_rng(0)), advance=told.append)
    assert sum(told) == len(episodes) == 40
    assert [episode["seed"] for episode in episodes] == list(range(40))
    assert environment.episode.max() > 1, "early ones went on"

    environment, actor = DotWorld(40, limit=12, seed=4), RandomActor(4, np.random.default_rng(0))
    observation, returns, lengths = environment.reset(), np.zeros(40), np.zeros(40, int)
    for lane_steps in range(1, 13):
        after = environment.step(actor.act(Moment(observation, np.zeros(40, bool)))[0])
        open_ = lengths == 0
        returns[open_] += after.reward[open_]
        lengths[open_ & (after.terminated | after.truncated)] = lane_steps
    assert [episode["return"] for episode in episodes] == returns.tolist()
    assert [episode["length"] for episode in episodes] == lengths.tolist()
    assert {-1.0, 0.0, 1.0} == set(returns)


def test_it_goes_on_where_it_stopped():
    evaluate = Evaluate(every=10)
    evaluate.evaluated_at = 37
    again = Evaluate(every=10)
    again.load_state_dict(evaluate.state_dict())
    assert again.evaluated_at == 37


def test_a_model_without_a_policy_is_refused():
    with pytest.raises(UserError, match="PerfectModel has none"):
        Evaluate().on_fit_start(SimpleNamespace(lightning_module=PerfectModel(), datamodule=None), None)


@pytest.mark.parametrize("options", [{"every": -1}, {"episodes": 0}, {"final_episodes": 0}], ids=str)
def test_impossible_numbers(options):
    with pytest.raises(UserError, match="evaluate needs") as raised:
        Evaluate(**options)
    assert "\n" not in str(raised.value)
