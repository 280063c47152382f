"""Resets: when, of what, and when not."""

import copy

import lightning
import pytest
import torch

from datamodules.control import ControlReplay
from datamodules.settings import Sampling, Storage
from modules.agent import Agent
from modules.errors import UserError
from modules.identity import IdentityModel
from modules.policies.actor_critic import Reinforce
from modules.policies.q_learning import QLearning
from modules.policies.q_network import Network
from modules.rounds import Rounds
from pipelines.callbacks.acting.collect import Collect
from pipelines.callbacks.learning.resets import Resets


class Watch(lightning.Callback):
    """Notes the number of updates at every reset, and the weights and the optimizer's states after it."""

    def __init__(self) -> None:
        self.resets: list[int] = []
        self.weights: list[torch.Tensor] = []
        self.states: list[int] = []

    def on_train_batch_end(self, trainer, agent, *args):
        policy = agent.policy
        if 0 < policy.reset_at == policy.updates and policy.updates not in self.resets:
            self.resets.append(policy.updates)
            self.weights.append(policy.online.advantage.weight.detach().clone())
            self.states.append(len(trainer.optimizers[0].state))


def fit(folder, resets, updates, policy=None, rounds=None, **options) -> Watch:
    watch = Watch()
    trainer = lightning.Trainer(
        **{"max_steps": updates} | options, default_root_dir=folder, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[resets, watch, Collect(prefill=20)],
    )  # fmt: skip
    data = ControlReplay(id="CartPole-v1", sampling=Sampling(4, 2), storage=Storage(100), seed=5)
    policy = policy or QLearning(Network(hidden=(4,)))
    trainer.fit(Agent(IdentityModel(), policy, "real", rounds or Rounds(0, 1)), datamodule=data)
    return watch


@pytest.mark.parametrize(
    ("every", "updates", "expected"), [(3, 12, [3, 6, 9]), (3, 13, [3, 6, 9]), (3, 11, [3, 6]), (5, 10, [5])]
)
def test_resets_are_regular_and_leave_a_period_to_recover(tmp_path, every, updates, expected):
    assert fit(tmp_path, Resets(every), updates).resets == expected


def test_updates_of_the_policy_count(tmp_path):
    watch = fit(tmp_path, Resets(4), 24, rounds=Rounds(1, 2, together=False))
    assert watch.resets == [4, 8, 12]


def test_an_update_of_several_batches_is_one(tmp_path):
    assert fit(tmp_path, Resets(2), 6, accumulate_grad_batches=3).resets == [2, 4]


def test_weights_are_drawn_by_the_run_and_the_moment_alone(tmp_path):
    """On every rank and after a resume alike: whatever torch's generators drew, which draw on as if there were none."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(fit(tmp_path / str(seed), Resets(2), 6).weights)
        drawn = torch.rand(3)
        torch.manual_seed(seed)
        fit(tmp_path / f"{seed} without", lightning.Callback(), 6)
        assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not torch.equal(found[0][0], found[0][1]), "every reset draws others"


def test_the_optimizer_forgets_what_was_renewed(tmp_path):
    """On vectors there is no encoder, so it forgets everything."""
    assert fit(tmp_path, Resets(3), 9).states == [0, 0]


def test_the_optimizer_keeps_the_encoder():
    policy = QLearning(Network(channels=(2, 2, 2), hidden=(4,)))
    policy.build((1, 24, 24), 2)
    optimizer = torch.optim.AdamW(policy.parameter_groups())
    policy.online(torch.rand(2, 1, 24, 24)).sum().backward()
    optimizer.step()
    before = copy.deepcopy({id(p): optimizer.state[p]["exp_avg"] for p in policy.online.encoder.parameters()})
    Resets.forget(optimizer)
    assert {id(p) for p in optimizer.state} == before.keys()
    assert all(torch.equal(optimizer.state[p]["exp_avg"], before[id(p)]) for p in policy.online.encoder.parameters())


@pytest.mark.parametrize(
    ("make", "updates", "policy", "words"),
    [
        (lambda: Resets(0), 9, None, r"Resets\.every must be at least 1: got 0"),
        (lambda: Resets(3, keep=1.5), 9, None, r"Resets\.keep must be from 0 to 1: got 1\.5"),
        (lambda: Resets(5), 9, None, r"Resets\.every is 5, but the run has 9 policy updates"),
        (lambda: Resets(3), -1, None, r"set trainer\.max_steps or trainer\.max_epochs"),
        (lambda: Resets(3), 9, Reinforce(hidden=[4]), "such as QLearning: got Reinforce"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, make, updates, policy, words):
    with pytest.raises(UserError, match=words) as raised:
        fit(tmp_path, make(), updates, policy, max_epochs=-1)
    assert "\n" not in str(raised.value)
