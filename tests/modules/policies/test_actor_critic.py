"""Policy gradients against what they are by definition, on a tiny decision problem."""

import pytest
import torch

from modules.batch import Batch
from modules.errors import UserError
from modules.imagination import imagine
from modules.layers.returns import lambda_returns
from modules.optimization import Optimization
from modules.policies.actor_critic import PPO, Reinforce, normalised
from tests.modules.policies.mdp import DISCOUNT, MDP, NUM_ACTIONS, NUM_STATES, rows

POLICY_ALONE = {"entropy_coefficient": 0.0, "value_coefficient": 0.0}


def built(kind, **options):
    """A policy that prefers some actions; without hidden layers it is a table."""
    policy = kind(**{"hidden": [], "discount": DISCOUNT, "lambda_": 0.8} | options)
    policy.build((NUM_STATES,), NUM_ACTIONS)
    torch.nn.init.normal_(policy.actor_head.weight)
    return policy


def dream(model, policy, horizon: int = 6, num: int = 40) -> Batch:
    return imagine(model, policy, torch.randint(NUM_STATES, (num,)), horizon)


def gradients(policy, loss) -> list[torch.Tensor]:
    policy.zero_grad(set_to_none=False)
    loss.backward()
    return [parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None]


@pytest.fixture
def model() -> MDP:
    """Ends are but likely: every dreamed row counts a little less."""
    model = MDP()
    model.continues = 0.3 + 0.6 * model.continues
    return model


def test_before_it_has_learned_anything_ppo_is_the_plain_policy_gradient(model):
    """At ratio 1 nothing is clipped: the gradient of r(theta) A is that of log pi A (Schulman et al. 2017, eq. 1)."""
    policy, plain = built(PPO, hidden=[8]), built(Reinforce, hidden=[8])
    plain.load_state_dict(policy.state_dict())
    batch = dream(model, policy)
    loss, parts, *_ = policy.loss(batch, model)
    assert parts["clipped"] == 0
    found, expected, *_ = gradients(policy, loss), gradients(plain, plain.loss(batch, model).total)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    assert sum(gradient.abs().sum() for gradient in found) > 0.1


def test_clipping_stops_the_gradient_of_what_went_too_far(model):
    """Four transitions, each from a state of its own: only what would take the policy back still pulls."""
    policy = built(PPO, clip_range=0.2, lambda_=1.0, **POLICY_ALONE)
    too_far = 1.5
    batch = rows(
        [[0, 5], [1, 5], [2, 5], [3, 5]], [[0, 0]] * 4, [[1.0, 0], [-1.0, 0], [1.0, 0], [-1.0, 0]], [[0.0, 1]] * 4
    )
    now = policy.evaluate(batch, model)[0].log_prob(batch.action).detach()
    ratio = torch.tensor([[too_far], [too_far], [1 / too_far], [1 / too_far]])
    batch = batch.replace(extras={"log_prob": now - ratio.log(), "value": torch.zeros(4, 2)})
    loss, parts, *_ = policy.loss(batch, model)
    assert parts["clipped"] == 1
    loss.backward()
    moved = policy.actor_head.weight.grad.abs().sum(dim=0) > 0
    assert moved[:4].tolist() == [False, True, True, False]
    # What is likelier by half than it was and did well counts 1.2, not 1.5; the same holds the other way round.
    assert loss.item() == pytest.approx(-(1.2 - 1.5 + 1 / 1.5 - 0.8) / 4, abs=1e-4)


def test_ppo_learns_from_what_its_actor_left(model):
    policy = built(PPO)
    batch = dream(model, policy)
    for name in ("log_prob", "value"):
        extras = {key: value for key, value in batch.extras.items() if key != name}
        with pytest.raises(UserError, match=f"rows have no {name}$") as raised:
            policy.loss(batch.replace(extras=extras), model)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [PPO, Reinforce])
def test_the_critic_learns_lambda_returns(model, kind):
    policy = built(kind, entropy_coefficient=0.0, value_coefficient=2.0, discount=0.7, lambda_=0.6)
    batch = dream(model, policy).replace(continuation=torch.ones(40, 7))
    _, values = policy.evaluate(batch, model)
    returns = lambda_returns(batch.reward, batch.continuation, batch.has_successor(), values.detach(), 0.7, 0.6)
    loss, parts, *_ = policy.loss(batch, model)
    error = 0.5 * ((values[:, :-1] - returns) ** 2).mean()
    assert parts["value_loss"].item() == pytest.approx(error.item(), rel=1e-5)
    loss.backward()
    (expected,) = torch.autograd.grad(2.0 * error, policy.critic_head.weight)
    assert torch.allclose(policy.critic_head.weight.grad, expected, atol=1e-6)


@pytest.mark.parametrize("kind", [PPO, Reinforce])
def test_entropy_is_that_of_the_actor(model, kind):
    policy = built(kind)
    batch = dream(model, policy, horizon=1)
    logits, _ = policy(model.features(batch.state[:, 0]))
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    losses = []
    for policy.entropy_coefficient in (0.0, 1.0):
        loss, parts, *_ = policy.loss(batch, model)
        assert parts["entropy"].item() == pytest.approx(entropy.item(), rel=1e-5)
        losses.append(loss.item())
    assert losses[0] - losses[1] == pytest.approx(entropy.item(), rel=1e-4)


def test_reinforce_on_a_bandit_is_the_gradient_of_the_expected_reward(model):
    """Every action as often as it is likely: what is summed is the expectation, p (A - E[A]), with A normalised."""
    policy = built(Reinforce, **POLICY_ALONE)
    probability, reward = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([1.0, -2.0, 4.0])
    policy.actor_head.weight.data.zero_()
    policy.actor_head.bias.data.copy_(probability.log())
    action = torch.tensor([0, 0, 1, 2])
    batch = rows([[4, 4]] * 4, [[0, 0]] * 4, [[0.0, 0.0]] * 4, [[0.0, 1.0]] * 4)
    batch = batch.replace(
        action=torch.stack([action, action], 1), reward=torch.stack([reward[action], reward[action]], 1)
    )
    mean = (probability * reward).sum()
    deviation = (probability * (reward - mean) ** 2).sum().sqrt()
    policy.loss(batch, model).total.backward()
    expected = -probability * (reward - mean) / deviation
    assert torch.allclose(policy.actor_head.bias.grad, expected, atol=1e-4)
    assert torch.allclose(policy.actor_head.weight.grad[:, 4], expected, atol=1e-4)


@pytest.mark.parametrize("kind", [PPO, Reinforce])
def test_rows_count_as_likely_as_they_are_reached(model, kind):
    policy = built(kind)
    batch = dream(model, policy)
    batch.continuation[:, 2] = 0
    reference = gradients(policy, policy.loss(batch, model).total)
    after = batch.reward + torch.tensor([0.0, 0, 0, 9, 9, 9, 9])
    found = gradients(policy, policy.loss(batch.replace(reward=after), model).total)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, reference, strict=True))
    moved = gradients(
        policy, policy.loss(batch.replace(reward=batch.reward + torch.eye(7)[2] * batch.action), model).total
    )
    assert not all(torch.allclose(a, b, atol=1e-3) for a, b in zip(moved, reference, strict=True))


def test_advantages_are_normalised_over_the_rows_that_count():
    advantage, weights = torch.randn(5, 4) * 3 + 2, torch.rand(5, 4)
    weights[:, 2] = 0
    found = normalised(advantage + 100 * (weights == 0), weights)
    share = weights / weights.sum()
    assert (share * found).sum().item() == pytest.approx(0, abs=1e-5)
    assert (share * found**2).sum().item() == pytest.approx(1, abs=1e-4)
    same = normalised(torch.ones(2, 2), torch.ones(2, 2))
    assert torch.equal(same, torch.zeros(2, 2))


@pytest.mark.parametrize("shared", [False, True])
def test_actor_and_critic_see_through_bodies_of_their_own_unless_they_share(shared):
    policy = Reinforce(hidden=[8], shared=shared)
    policy.build((5,), 3)
    assert sum(p.numel() for p in policy.parameters()) == (5 * 8 + 8) * (1 if shared else 2) + (8 * 3 + 3) + (8 + 1)
    logits, value = policy(torch.randn(6, 5))
    assert (logits.shape, value.shape) == ((6, 3), (6,))
    assert (logits.softmax(1) - 1 / 3).abs().max() < 0.05, "it begins nearly uniform"
    value.sum().backward()
    assert (policy.actor_body[1].weight.grad is not None) == shared


@pytest.mark.parametrize("options", [{"discount": 1.1}, {"lambda_": -0.5}, {"clip_range": 0.0}], ids=str)
def test_mistakes_get_one_line(options):
    (name,) = options
    with pytest.raises(UserError, match=f"{name} must") as raised:
        PPO(**options)
    assert "\n" not in str(raised.value)


# Learning.


@pytest.mark.parametrize(("kind", "epochs"), [(Reinforce, 1), (PPO, 4)])
def test_a_decision_problem_is_solved_in_dreams(kind, epochs):
    model = MDP()
    policy = built(kind, hidden=[32], optimization=Optimization(1e-2))
    optimizer = torch.optim.AdamW(policy.parameter_groups())
    states = torch.arange(NUM_STATES)
    optimal = model.optimal().amax(dim=1).mean()

    def worth() -> float:
        with torch.no_grad():
            return model.values(policy(model.features(states))[0].softmax(dim=1)).mean().item()

    before = worth()
    for _ in range(200 // epochs):
        batch = dream(model, policy, num=100)
        for _ in range(epochs):
            optimizer.zero_grad()
            policy.loss(batch, model).total.backward()
            optimizer.step()
    assert before < 0.5 * optimal
    assert worth() > 0.95 * optimal
    with torch.no_grad():
        valued = policy(model.features(states))[1]
    assert (valued - model.optimal().amax(dim=1)).abs().mean() < 0.15 * optimal
