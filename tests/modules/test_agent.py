"""A world model and a policy side by side: what one learns must not depend on the other."""

from collections.abc import Callable

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from modules.agent import Agent
from modules.batch import Batch
from modules.errors import UserError
from modules.identity import IdentityModel
from modules.optimization import Optimization
from modules.policies.actor_critic import PPO, Reinforce
from modules.policies.policy import Policy
from modules.policies.q_learning import QLearning
from modules.policies.q_network import Network
from modules.policies.q_settings import Targets
from modules.rounds import Rounds, Turn
from modules.world_model import Loss, Spec, Step, WorldModel
from tests.modules.policies.mdp import rows

SIZE, ACTIONS, LATENT = 3, 2, 4
SMALL = Network(hidden=(8,))
SPEC = Spec((SIZE,), 1, ACTIONS)


class Latent(WorldModel):
    """States and features are made by networks: everything that a policy's gradient could leak into."""

    capabilities = frozenset({"step", "reward"})

    def build(self, spec: Spec) -> None:
        self.state_shape, self.feature_shape = (LATENT,), (LATENT,)
        self.encoder = torch.nn.Linear(SIZE, LATENT)
        self.seer = torch.nn.Linear(LATENT, LATENT)
        self.dynamics = torch.nn.Linear(LATENT + ACTIONS, LATENT + 1)
        self.updates = 0

    def encode(self, batch: Batch) -> torch.Tensor:
        return self.encoder(batch.observation).tanh()

    def loss(self, batch: Batch):
        states = self.encode(batch)
        after = self.step(states[:, :-1].flatten(0, 1), batch.action[:, :-1].flatten())
        error = F.mse_loss(after.state, states[:, 1:].flatten(0, 1)) + F.mse_loss(
            after.reward, batch.reward[:, :-1].flatten()
        )
        error = error + self.features(states).square().mean()
        return Loss(error, {"error": error.detach()}, states.detach())

    def step(self, state, action):
        predicted = self.dynamics(torch.cat([state, F.one_hot(action, ACTIONS)], dim=1))
        return Step(predicted[:, :-1], predicted[:, -1], torch.full((len(state),), 0.9))

    def features(self, state):
        return self.seer(state)

    def updated(self):
        self.updates += 1


def real(seed: int) -> Batch:
    source = torch.Generator().manual_seed(seed)
    batch = rows([[0] * 4] * 6, [[0] * 4] * 6, [[0.0] * 4] * 6)
    return batch.replace(
        state=None,
        observation=torch.randn(6, 4, SIZE, generator=source),
        action=torch.randint(ACTIONS, (6, 4), generator=source),
        reward=torch.randn(6, 4, generator=source),
        extras={name: torch.randn(6, 4, generator=source) / 9 - 0.7 for name in ("log_prob", "value")},
    )


def dream(seed: int, num: int = 5, length: int = 3) -> Batch:
    source = torch.Generator().manual_seed(seed)
    batch = rows([[0] * length] * num, [[0] * length] * num, [[0.0] * length] * num)
    return batch.replace(
        state=torch.randn(num, length, LATENT, generator=source),
        action=torch.randint(ACTIONS, (num, length), generator=source),
        reward=torch.randn(num, length, generator=source),
        continuation=torch.rand(num, length, generator=source),
        extras={name: torch.randn(num, length, generator=source) / 9 - 0.7 for name in ("log_prob", "value")},
    )


def batches(num: int, **kinds: Callable[[int], Batch]) -> list[dict[str, Batch]]:
    return [{kind: make(number) for kind, make in kinds.items()} for number in range(num)]


class Data(lightning.LightningDataModule):
    def __init__(self, batches) -> None:
        super().__init__()
        self.batches, self.spec = batches, SPEC

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)


class Watch(lightning.Callback):
    """Keeps every part's gradients before and after they are clipped, and what an update left behind."""

    def __init__(self) -> None:
        self.gradients, self.clipped, self.weights, self.moments = [], [], [], []

    def on_after_backward(self, trainer, agent):
        self.gradients.append(self.read(agent, lambda p: p.grad))

    def on_before_zero_grad(self, trainer, agent, optimizer):
        if self.gradients:
            self.clipped.append(self.read(agent, lambda p: p.grad))

    def on_train_batch_end(self, trainer, agent, *args):
        (optimizer,) = trainer.optimizers
        self.weights.append(self.read(agent, lambda p: p))
        self.moments.append(self.read(agent, lambda p: optimizer.state.get(p, {}).get("exp_avg")))

    @staticmethod
    def read(agent, value):
        return {
            part: [None if value(p) is None else value(p).detach().clone() for p in getattr(agent, part).parameters()]
            for part in ("world_model", "policy")
        }


def agent(policy: Policy | None = None, model: WorldModel | None = None, **options) -> Agent:
    torch.manual_seed(3)
    module = Agent(
        model or Latent(Optimization(1e-2)), policy or Reinforce(hidden=[8], optimization=Optimization(1e-2)), **options
    )
    module.build_from(SPEC)
    return module


def train(module: Agent, data: list[dict[str, Batch]], **options) -> Watch:
    watch = Watch()
    defaults = {"max_steps": len(data), "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    defaults |= {"enable_progress_bar": False, "enable_model_summary": False, "callbacks": watch}
    lightning.Trainer(**defaults | options).fit(module, datamodule=Data(data))
    return watch


def turns(rounds: Rounds, num: int) -> list[Turn]:
    return [rounds.at(update) for update in range(num)]


def equal(first, second) -> bool:
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(first, second, strict=True)
    )


# One summed loss, and no gradient from one part to the other.

POLICIES = [
    lambda: Reinforce(hidden=[8], optimization=Optimization(0.5)),
    lambda: PPO(hidden=[8], shared=True, gradient_clip_val=0.01),
    lambda: QLearning(SMALL, Targets(n_step=2)),
]


@pytest.mark.parametrize("make", POLICIES)
@pytest.mark.parametrize("learns_from", ["real", "dream", "both"])
def test_the_model_gets_the_gradient_of_its_own_loss_and_no_other(make, learns_from):
    """Bit for bit, and hence the same weights, whatever the policy does."""
    data = batches(3, real=real, dream=dream)
    alone = agent(rounds=Rounds(1, 0))
    module = agent(make(), policy_learns_from=learns_from)
    watch, reference = train(module, data), train(alone, data)
    fresh = agent()
    loss = fresh.world_model.loss(data[0]["real"]).total
    loss.backward()
    assert equal(watch.gradients[0]["world_model"], [p.grad for p in fresh.world_model.parameters()])
    for number in range(3):
        assert equal(watch.gradients[number]["world_model"], reference.gradients[number]["world_model"])
        assert equal(watch.weights[number]["world_model"], reference.weights[number]["world_model"])


@pytest.mark.parametrize("make", POLICIES)
@pytest.mark.parametrize("learns_from", ["real", "dream"])
def test_the_policy_gets_the_gradient_of_its_own_loss_and_no_other(make, learns_from):
    data = batches(1, real=real, dream=dream)
    fresh = agent(make())
    rows = data[0][learns_from]
    if learns_from == "real":
        rows = rows.replace(state=fresh.world_model.encode(rows).detach())
    loss = fresh.policy.loss(rows, fresh.world_model).total
    loss.backward()
    expected = [p.grad for p in fresh.policy.parameters()]
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in expected)
    for model_updates in (0, 1):
        module = agent(make(), policy_learns_from=learns_from, rounds=Rounds(model_updates, 1))
        assert equal(train(module, data).gradients[0]["policy"], expected)


def test_every_transition_that_is_reached_counts_alike():
    """Real and dreamed rows in one loss are as all of them in one batch."""
    module = agent(QLearning(SMALL))
    played, dreamed = real(0), dream(0, length=4)
    played.is_last[:4, 1] = True
    played = played.replace(state=module.world_model.encode(played).detach())
    together = Batch(
        **{
            name: torch.cat([getattr(played, name), getattr(dreamed, name)])
            for name in ("action", "reward", "continuation", "is_first", "is_last", "state")
        }
    )
    expected = module.policy.loss(together, module.world_model).total
    found, parts, *_ = module.policy_loss(played, dreamed)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert {"real_loss", "dream_loss", "real_value"} <= parts.keys()
    assert parts["real_loss"] != parts["dream_loss"]


def test_the_model_learns_from_windows_of_its_own_if_there_are_any():
    """Both parts learn what each of them learns alone from its own rows, to the bit."""
    own, both = [real(9), real(8)], agent(rounds=Rounds(1, 1), policy_learns_from="real")
    train(both, [{"real": real(number), "model": rows} for number, rows in enumerate(own)])
    model = agent(rounds=Rounds(1, 0), policy_learns_from="real")
    train(model, [{"real": rows} for rows in own])
    assert equal(both.world_model.parameters(), model.world_model.parameters())
    other = agent(rounds=Rounds(1, 1), policy_learns_from="real")
    train(other, [{"real": real(number + 2), "model": rows} for number, rows in enumerate(own)])
    assert equal(both.world_model.parameters(), other.world_model.parameters())
    assert not equal(both.policy.parameters(), other.policy.parameters())


def test_real_rows_do_not_reach_a_policy_that_learns_from_dreams():
    module = agent(policy_learns_from="dream")
    poisoned = real(0).map(lambda tensor: torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor)
    results = []
    for given in (real(0), poisoned, None):
        module.zero_grad()
        loss = module.policy_loss(given, dream(0)).total
        loss.backward()
        results.append([loss, *(p.grad.clone() for p in module.policy.parameters())])
    assert results[0][0].isfinite()
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])


def test_nor_do_dreams_reach_one_that_learns_from_real_rows():
    module = agent(policy_learns_from="real")
    losses = [module.policy_loss(real(0), given).total for given in (None, dream(0))]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("learns_from", ["dream", "both"])
def test_a_policy_that_should_learn_from_dreams_is_refused_without_dreams(learns_from):
    with pytest.raises(
        UserError, match=f"policy_learns_from is {learns_from}, but no callback launches dreams"
    ) as raised:
        train(agent(policy_learns_from=learns_from), batches(1, real=real))
    assert "\n" not in str(raised.value)


# One optimizer.


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_a_part_whose_turn_it_is_not_stands_still(weight_decay):
    """Weights, moments and what follows an update: target networks, schedules."""
    module = agent(
        QLearning(SMALL, optimization=Optimization(1e-2)),
        Latent(Optimization(1e-2, weight_decay)),
        rounds=Rounds(2, 3, False),
    )
    data = batches(10, real=real, dream=dream)
    before = Watch.read(module, lambda p: p)
    watch = train(module, data)
    for update, turn in enumerate(turns(module.rounds, 10)):
        for part, learns in (("world_model", turn.model), ("policy", turn.policy)):
            after = watch.weights[update][part]
            assert equal(after, before[part]) != learns, (update, part)
            if update:
                assert equal(watch.moments[update][part], watch.moments[update - 1][part]) != learns
        before = watch.weights[update]
    assert (module.world_model.updates, module.policy.updates) == (4, 6)


def test_every_part_is_clipped_by_its_own_norm():
    data = batches(2, real=real, dream=dream)
    module = agent(Reinforce(hidden=[8], gradient_clip_val=1e-3))
    watch = train(module, data, gradient_clip_val=1e-2)
    for part, limit in (("world_model", 1e-2), ("policy", 1e-3)):
        raw, clipped = (torch.cat([g.flatten() for g in kept[0][part]]) for kept in (watch.gradients, watch.clipped))
        assert raw.norm() > limit
        assert torch.allclose(clipped, limit / raw.norm() * raw, rtol=1e-3)
    module = agent(Reinforce(hidden=[8], gradient_clip_val=None))
    watch = train(module, data)
    assert equal(watch.gradients[0]["policy"], watch.clipped[0]["policy"])
    assert equal(watch.gradients[0]["world_model"], watch.clipped[0]["world_model"])


def test_learning_rates_are_the_parts_own():
    """Each follows a warm-up of its own."""

    seen = []

    class Rates(lightning.Callback):
        def on_train_batch_start(self, trainer, *args):
            seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    module = agent(Reinforce(hidden=[8], optimization=Optimization(0.3, warmup=2)), Latent(Optimization(0.1, warmup=4)))
    train(module, batches(5, real=real, dream=dream), callbacks=Rates())
    expected = [[0.1 * min(1, (n + 1) / 4)] * 2 + [0.3 * min(1, (n + 1) / 2)] * 2 for n in range(5)]
    assert [rate for rates in seen for rate in rates] == pytest.approx([rate for rates in expected for rate in rates])


def test_both_parts_take_the_same_kind_of_optimizer():
    module = agent(Reinforce(hidden=[8], optimization=Optimization(optimizer="sgd")))
    with pytest.raises(UserError, match="of the world model is adamw, of the policy sgd") as raised:
        train(module, batches(1, real=real, dream=dream))
    assert "\n" not in str(raised.value)


def test_updates_are_counted_before_callbacks_save_them():
    seen = []

    class Counted(lightning.Callback):
        def on_train_batch_end(self, trainer, agent, *args):
            seen.append((trainer.global_step, agent.policy.updates, agent.world_model.updates))

    train(agent(), batches(4, real=real, dream=dream), callbacks=Counted())
    assert seen == [(n, n, n) for n in range(1, 5)]


def test_an_update_of_several_batches_is_one():
    module = agent()
    train(module, batches(6, real=real, dream=dream), max_steps=3, accumulate_grad_batches=2)
    assert module.policy.updates == module.world_model.updates == 3


def test_mixed_precision():
    module = agent(policy_learns_from="both")
    before = Watch.read(module, lambda p: p)
    watch = train(module, batches(3, real=real, dream=dream), precision="bf16-mixed")
    for part in ("world_model", "policy"):
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in watch.weights[-1][part])
        assert not equal(watch.weights[-1][part], before[part])


# Which parts go together.


class Featureless(Latent):
    def build(self, spec: Spec) -> None:
        self.state_shape = (LATENT,)


class Rewardless(Latent):
    capabilities = frozenset({"step", "decode"})


@pytest.mark.parametrize(
    ("model", "learns_from", "words"),
    [
        (IdentityModel, "dream", "IdentityModel has no step and no reward"),
        (IdentityModel, "both", "IdentityModel has no step and no reward"),
        (Rewardless, "dream", "Rewardless has no reward"),
        (Featureless, "real", "Featureless has no features"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(model, learns_from, words):
    module = Agent(model(), Reinforce(hidden=[8]), policy_learns_from=learns_from)
    with pytest.raises(UserError, match=words) as raised:
        train(module, batches(1, real=real, dream=dream))
    assert "\n" not in str(raised.value)


def test_a_model_that_predicts_nothing_does_for_real_rows():
    module = agent(model=IdentityModel(), policy_learns_from="real")
    before = Watch.read(module, lambda p: p)
    watch = train(module, batches(2, real=real), gradient_clip_val=1.0)
    assert not equal(watch.weights[-1]["policy"], before["policy"])


def test_a_learner_names_its_parts():
    module = agent()
    assert module.world_model.world_model is module.world_model
    assert module.require_policy() is module.policy is module.trained_policy
    assert module.world_model.trained_policy is None
    with pytest.raises(UserError, match=r"a policy is needed, .* Latent has none"):
        module.world_model.require_policy()
