"""Learning from what a search in the emulator recorded: MuZero's networks imitate UCT, as in expert iteration."""

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.acting import Moment
from datamodules.atari import AtariReplay
from datamodules.environments.emulator import AtariEmulators
from datamodules.replay.store import ReplayStore
from datamodules.settings import Envs, Storage
from modules.errors import UserError
from pipelines.acting.exploration import Exploration
from pipelines.acting.play import RandomPlay, RulesPlay, Stage
from pipelines.callbacks.acting.collect import Collect
from pipelines.search.rules import Stop, Uct
from pipelines.search.search import Search

PLANNED = """
callbacks+:
  - Collect:
      prefill: 40
      steps_per_update: 4.0
      actor:
        class_path: pipelines.acting.play.RulesPlay
        init_args:
          rollout_depth: 2
          exploration: {epsilon: 0.1, temperatures: [1.0, 0.5]}
          search:
            class_path: pipelines.search.search.Search
            init_args:
              rule:
                class_path: pipelines.search.rules.Uct
              stop: {simulations: 4}
              discount: 0.99
              noise: null
      prefill_actor: null
"""
OPTIONS = ("--data.game", "Boxing", "--data.storage.capacity", 64, "--model.optimization.warmup", 0)


@pytest.fixture
def planned(tmp_path) -> tuple:
    config = tmp_path / "planned.yaml"
    config.write_text(PLANNED)
    muzero = ("--config", "configs/size/muzero__atari_small.yaml", "--config", config, "--config", "configs/debug.yaml")
    return ("fit", *muzero, *OPTIONS, "--trainer.max_steps", 2)


def test_networks_learn_from_the_searches_of_the_emulator(run, planned, tmp_path):
    folder = tmp_path / "run"
    outcome = run(*planned, "--trainer.default_root_dir", folder)
    assert outcome.code == 0, outcome.err
    store = ReplayStore.open(folder / "replay" / "rank0")
    assert store.description["terminal_frame_repeats"] is False, "the emulators were played"
    rows = store.rows
    batch = store.gather(np.arange(store.num_envs), np.zeros(store.num_envs, int), rows, frame_stack=1)
    store.close()
    shares = batch.extras["search_policy"]
    assert shares.shape == (2, rows, 18)
    assert torch.equal(shares.sort(dim=2)[0], torch.tensor([0.0] * 14 + [0.25] * 4).expand(2, rows, 18))
    assert batch.extras["root_value"].isfinite().all()
    untried = shares.gather(2, batch.action[..., None])[..., 0] == 0
    assert untried.float().mean() < 0.2, "moves are drawn by visits, but for a random one in ten"
    with next(folder.rglob("metrics.csv")).open() as file:
        first, second = (row for row in csv.DictReader(file) if row["train/policy"])
    # The root and one unrolled step: the first prediction is uniform, UCT tried four moves once each.
    assert float(first["train/policy"]) == pytest.approx(2 * np.log(18), abs=1e-3)
    assert float(first["train/search_entropy"]) == pytest.approx(2 * np.log(4), abs=1e-3)
    assert float(second["train/policy"]) < float(first["train/policy"]), "it has begun to imitate the search"

    resumed = (*planned[:-1], 3, "--trainer.default_root_dir", folder, "--ckpt_path", "last")
    outcome = run(*resumed)
    assert outcome.code == 0, outcome.err
    assert ReplayStore.open(folder / "replay" / "rank0").rows > rows


def test_worlds_without_clones_are_refused_before_anything_is_played(run, planned, tmp_path):
    config = tmp_path / "planned.yaml"
    options = ("--config", "configs/experiment/muzero__cartpole.yaml", "--config", config)
    outcome = run("fit", *options, "--config", "configs/debug.yaml", "--trainer.default_root_dir", tmp_path / "run")
    assert outcome.refused("CartPole-v1 cannot be cloned")
    assert not (tmp_path / "run" / "replay").exists()
    sticky = ("--data.protocol", "machado2018", "--trainer.default_root_dir", tmp_path / "sticky")
    assert run(*planned, *sticky).refused("cannot be reused", "set reuse to false")


def data(folder: Path) -> AtariReplay:
    return AtariReplay(
        "Breakout",
        size=(21, 21),
        envs=Envs(2, 1),
        storage=Storage(20, ("search_policy", "root_value")),
        seed=3,
    )


def test_the_play_says_what_environments_it_needs():
    rules, random = RulesPlay(Search(Uct(), Stop(2))), RandomPlay()
    assert Collect(1, actor=rules, prefill_actor=None).wants_clones
    assert Collect(1, prefill_actor=rules).wants_clones
    assert not Collect(1, actor=random).wants_clones


def test_emulators_have_the_world_of_the_datamodule(tmp_path):
    made = data(tmp_path)
    plain, clonable = made.training_environment(2, 5), made.clonable_environment(2, 5, "training")
    assert isinstance(clonable, AtariEmulators)
    differs = {"terminal_frame_repeats", "mode", "difficulty"}
    assert {k: v for k, v in clonable.description.items() if k not in differs} == {
        k: v for k, v in plain.description.items() if k not in differs
    }
    made.described = plain.description
    plain, clonable = made.evaluation_environment(2, 5), made.clonable_environment(2, 5, "evaluation")
    assert clonable.description["variant"] == plain.description["variant"] == "evaluation"
    assert clonable.observation_shape == plain.observation_shape == (1, 21, 21)


def test_a_planning_actor_goes_to_another_process():
    """As Ray sends it: the copy makes an emulator of its own, and plays the same moves."""
    environment = AtariEmulators("breakout", 2, variant="evaluation")
    play = RulesPlay(Search(Uct(), Stop(4), 0.99), rollout_depth=3, exploration=Exploration(epsilon=0.5))
    actor = play.actor(Stage(environment, lambda purpose: np.random.default_rng(7)))
    copy = pickle.loads(pickle.dumps(actor))
    moment = Moment(environment.reset(), np.ones(2, bool), clone=environment.clone())
    (actions, extras), (same, found) = actor.act(moment), copy.act(moment)
    assert np.array_equal(actions, same)
    assert all(np.array_equal(extras[name], found[name]) for name in play.columns)


def test_an_evaluation_that_would_fail_at_the_end_is_refused_at_the_start(tmp_path):
    made = data(tmp_path)
    made.described = made.clonable_environment(1, 0, "training").description
    RulesPlay(Search(Uct(), Stop(2))).check(None, made)
    made.described = made.described | {
        "protocol": made.described["protocol"] | {"repeat_action_probability": 0.25, "name": "sticky"}
    }
    with pytest.raises(UserError, match="cannot be reused under the sticky actions of protocol sticky"):
        RulesPlay(Search(Uct(), Stop(2))).check(None, made)
