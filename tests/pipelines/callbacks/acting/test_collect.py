"""Real steps between updates: how many, and what the policy is told of them."""

import lightning
import pytest
import torch

from datamodules.control import ControlReplay
from datamodules.settings import Envs, Sampling, Storage
from modules.agent import Agent
from modules.errors import UserError
from modules.identity import IdentityModel
from modules.policies.q_learning import QLearning
from modules.policies.q_network import Network
from modules.policies.q_settings import Epsilon
from modules.rounds import Rounds
from pipelines.callbacks.acting.collect import Collect


class Watch(lightning.Callback):
    """Notes the real steps after every update, and what the policy knows of them in the next one."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.known: list[int] = []

    def on_train_batch_start(self, trainer, agent, *args):
        self.steps.append(trainer.datamodule.env_steps)
        self.known.append(agent.policy.real_steps)


class Told(QLearning):
    """Notes the real steps that it knows of whenever it acts."""

    def forward(self, features):
        if not self.training:
            self.__dict__.setdefault("acted", []).append(self.real_steps)
        return super().forward(features)


def fit(folder, collect, updates, num_envs=1, policy=None, capacity=200, **options):
    torch.manual_seed(0)
    watch = Watch()
    policy = policy or QLearning(Network(hidden=(4,)), epsilon=Epsilon(1.0, 0.0, 8))
    trainer = lightning.Trainer(
        default_root_dir=folder, max_steps=updates, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[watch, collect], **options,
    )  # fmt: skip
    data = ControlReplay(
        id="CartPole-v1", envs=Envs(num_envs), sampling=Sampling(4, 2), storage=Storage(capacity), seed=5
    )
    trainer.fit(Agent(IdentityModel(), policy, "real", Rounds(0, 1)), datamodule=data)
    return watch


@pytest.mark.parametrize(("num_envs", "per_update"), [(1, 0.5), (4, 0.5), (1, 0.125), (3, 0.4), (2, 3.0)])
def test_the_ratio_of_steps_to_updates_is_pinned(tmp_path, num_envs, per_update):
    """Several updates per vector step, or several vector steps per update: never a step too few, nor one too many."""
    watch = fit(tmp_path, Collect(prefill=12, steps_per_update=per_update), 40, num_envs)
    for updates, steps in enumerate(watch.steps):
        due = 12 + per_update * updates
        assert due <= steps < due + num_envs
    assert len(set(watch.steps)) > 5


def test_the_policy_knows_the_steps_after_the_prefill(tmp_path):
    watch = fit(tmp_path, Collect(prefill=12, steps_per_update=0.5), 20, num_envs=2)
    assert watch.known == [steps - 12 for steps in watch.steps]
    assert watch.known[-1] == 10


def test_an_update_of_several_batches_plays_once(tmp_path):
    watch = fit(tmp_path, Collect(prefill=12, steps_per_update=1.0), 8, accumulate_grad_batches=3)
    assert len(watch.known) == 24
    assert watch.known == [batch // 3 for batch in range(24)]


def test_the_policy_knows_them_while_it_acts(tmp_path):
    policy = Told(Network(hidden=(4,)))
    fit(tmp_path, Collect(prefill=12, steps_per_update=1.0), 6, policy=policy)
    assert policy.acted == [0, 1, 2, 3, 4]


def test_a_store_that_is_only_read_was_played(tmp_path):
    fit(tmp_path / "played", Collect(prefill=30), 1)
    data = ControlReplay(id="CartPole-v1", sampling=Sampling(4, 2), path=tmp_path / "played" / "replay" / "rank0")
    policy, watch = QLearning(Network(hidden=(4,)), epsilon=Epsilon(1.0, 0.1, 20)), Watch()
    trainer = lightning.Trainer(
        default_root_dir=tmp_path / "read", max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[watch, Collect(prefill=9)],
    )  # fmt: skip
    trainer.fit(Agent(IdentityModel(), policy, "real", Rounds(0, 1)), datamodule=data)
    assert watch.known == [30, 30]
    assert policy.exploration == pytest.approx(0.1)


@pytest.mark.parametrize("wrong", [-0.5, float("nan"), float("inf")])
def test_an_impossible_ratio_is_refused(wrong):
    with pytest.raises(UserError, match=r"Collect\.steps_per_update must be at least 0") as raised:
        Collect(prefill=10, steps_per_update=wrong)
    assert "\n" not in str(raised.value)


def test_more_steps_per_update_than_the_store_keeps_are_refused(tmp_path):
    with pytest.raises(UserError, match="steps_per_update is 201, but the store keeps 200 rows") as raised:
        fit(tmp_path, Collect(prefill=12, steps_per_update=201.0), 3)
    assert "\n" not in str(raised.value)
