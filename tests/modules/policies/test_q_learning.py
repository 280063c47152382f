"""Q-learning against targets that are written down by hand, and the values of a tiny decision problem."""

import copy

import pytest
import torch
import torch.nn.functional as F

from modules.errors import UserError
from modules.identity import IdentityModel
from modules.layers.augmentation import Augmentation
from modules.optimization import Optimization
from modules.policies.q_learning import QLearning
from modules.policies.q_network import Network
from modules.policies.q_settings import Anneal, Distribution, Epsilon, TargetNetwork, Targets
from modules.world_model import Spec
from tests.modules.policies.mdp import DISCOUNT, MDP, NUM_ACTIONS, NUM_STATES, rows


def built(
    targets: dict | None = None, hidden=(16,), dueling=True, layer_norm=False, epsilon=(1.0, 0.05, 100), **options
) -> QLearning:
    """A policy with a target network of other weights; `targets` are arguments of Targets."""
    network = Network(hidden=hidden, dueling=dueling, layer_norm=layer_norm)
    rule = Targets(**{"discount": DISCOUNT} | (targets or {}))
    policy = QLearning(network, rule, epsilon=Epsilon(*epsilon), **options)
    policy.build((NUM_STATES,), NUM_ACTIONS)
    for parameter in policy.target.parameters():
        parameter.copy_(torch.randn_like(parameter))
    return policy


def table(network, model) -> torch.Tensor:
    """The outputs of every state, (S, A)."""
    return network(model.features(torch.arange(NUM_STATES))).detach()


@pytest.mark.parametrize("double", [False, True])
def test_targets(double):
    model, policy = MDP(), built({"double": double})
    states = torch.arange(NUM_STATES)
    after, reward, continuation = (states + 3) % NUM_STATES, torch.randn(NUM_STATES), (states % 4 > 0).float()
    batch = rows([[0, 0]] * NUM_STATES, [[1, 0]] * NUM_STATES, [[0.0, 9.0]] * NUM_STATES)
    batch = batch.replace(
        state=torch.stack([states, after], 1),
        reward=torch.stack([reward, reward], 1),
        continuation=torch.stack([continuation, continuation], 1),
    )
    online, target = table(policy.online, model), table(policy.target, model)
    chosen = (online if double else target)[after].argmax(dim=1)
    assert (online.argmax(dim=1) != target.argmax(dim=1)).any()
    expected = reward + DISCOUNT * continuation * target[after].gather(1, chosen[:, None])[:, 0]
    loss, parts, *_ = policy.loss(batch, model)
    assert loss.item() == pytest.approx(F.smooth_l1_loss(online[:, 1], expected).item(), rel=1e-5)
    assert parts["value"].item() == pytest.approx(online[:, 1].mean().item(), rel=1e-5)


def test_targets_of_n_steps():
    """The last rows have fewer steps left, and the step over an end has nothing after it."""
    model, policy = MDP(), built({"n_step": 2, "double": False})
    batch = rows([[2, 5, 7, 1, 4]], [[0, 2, 1, 0, 1]], [[1.0, 2.0, 3.0, 4.0, 5.0]], [[1.0, 1.0, 1.0, 0.0, 1.0]])
    online, target = table(policy.online, model), table(policy.target, model)
    best = target.max(dim=1).values
    expected = torch.tensor(
        [
            1 + DISCOUNT * 2 + DISCOUNT**2 * best[7],
            2 + DISCOUNT * 3 + DISCOUNT**2 * best[1],
            3 + DISCOUNT * 4,
            4,
        ]
    )
    chosen = online[[2, 5, 7, 1], [0, 2, 1, 0]]
    loss = policy.loss(batch, model).total
    assert loss.item() == pytest.approx(F.smooth_l1_loss(chosen, expected).item(), rel=1e-5)


def test_rows_that_nothing_follows_do_not_count():
    model, policy = MDP(), built()
    batch = rows([[2, 5, 7]] * 2, [[0, 1, 2]] * 2, [[1.0, 2.0, 3.0]] * 2)
    last = torch.tensor([[False, True, False], [False, False, False]])
    first = torch.tensor([[False, False, True], [False, False, True]])
    batch = batch.replace(is_last=last, is_first=first)
    reference = policy.loss(batch, model).total
    for change in (
        {"reward": batch.reward + 7 * (first.roll(-1, 1))},
        {"action": (batch.action + first.roll(-1, 1)) % 3},
    ):
        assert policy.loss(batch.replace(**change), model).total == reference
    assert policy.loss(batch.replace(reward=batch.reward + 7), model).total != reference


def test_dreamed_rows_count_as_likely_as_they_are_reached():
    model, policy = MDP(), built({"double": False})
    dream = rows([[2, 5, 7]], [[0, 1, 2]], [[1.0, 2.0, 0.0]], [[0.25, 0.5, 1.0]], [[False, False, True]])
    single = [policy.loss(dream[:, t : t + 2], model).total.item() for t in (0, 1)]
    assert policy.loss(dream, model).total.item() == pytest.approx((single[0] + 0.25 * single[1]) / 1.25, rel=1e-5)


def test_rewards_may_be_clipped():
    model, policy = MDP(), built(clip_rewards=True)
    batch = rows([[2, 5]], [[0, 1]], [[-4.0, 0.0]])
    assert policy.loss(batch, model).total == policy.loss(batch.replace(reward=batch.reward.sign()), model).total
    policy.clip_rewards = False
    assert policy.loss(batch, model).total != policy.loss(batch.replace(reward=batch.reward.sign()), model).total


def test_dueling_networks_split_value_and_advantage():
    model = MDP()
    network = built(dueling=True).online
    x = network.hidden(model.features(torch.arange(NUM_STATES)))
    values = network(model.features(torch.arange(NUM_STATES)))
    assert torch.allclose(values.mean(dim=1, keepdim=True), network.value(x), atol=1e-6)
    assert torch.allclose(values.diff(dim=1), network.advantage(x).diff(dim=1), atol=1e-6)
    assert built(dueling=False).online.value is None


def test_only_the_online_network_learns():
    model, policy = MDP(), built()
    policy.loss(model.play(4, 6).replace(state=torch.randint(NUM_STATES, (4, 6))), model)[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.online.parameters())
    assert all(p.grad is None for p in policy.target.parameters())
    assert model.one.grad is None
    learned = [p for group in policy.parameter_groups() for p in group["params"]]
    assert len(learned) == len(list(policy.online.parameters()))
    assert {id(p) for p in learned} == {id(p) for p in policy.online.parameters()}


def test_the_target_network_follows_on_schedule():
    policy = built(target_network=TargetNetwork(0.25, 3))
    expected, online = copy.deepcopy(policy.target), policy.online
    for update in range(1, 8):
        for p in online.parameters():
            p.data += 1
        policy.updated()
        if update % 3 == 0:
            for target, p in zip(expected.parameters(), online.parameters(), strict=True):
                target += 0.25 * (p - target)
        for target, p in zip(policy.target.parameters(), expected.parameters(), strict=True):
            assert torch.allclose(target, p, atol=1e-6)
    copied = built(target_network=TargetNetwork(1.0))
    copied.updated()
    for target, p in zip(copied.target.parameters(), copied.online.parameters(), strict=True):
        assert torch.equal(target, p)


# Acting.


def test_random_actions_become_rarer_in_a_straight_line():
    """With the real steps that are played, however many updates are made."""
    policy = built(epsilon=(0.9, 0.1, 8))
    seen = []
    for policy.real_steps in range(0, 12, 2):
        seen.append(policy.exploration)
        policy.updated()
    assert seen == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1, 0.1])
    assert built(epsilon=(0.9, 0.1, 0)).exploration == pytest.approx(0.1)


@pytest.mark.parametrize("epsilon", [1.0, 0.3, 0.0])
def test_logits_are_those_of_epsilon_greedy_actions(epsilon):
    model, policy = MDP(), built(epsilon=(1.0, epsilon, 0))
    logits, value = policy(model.features(torch.arange(NUM_STATES)))
    values = table(policy.online, model)
    greedy = F.one_hot(values.argmax(dim=1), NUM_ACTIONS)
    assert torch.allclose(logits.softmax(dim=1), (1 - epsilon) * greedy + epsilon / NUM_ACTIONS, atol=2e-6)
    assert torch.equal(value, values.max(dim=1).values)
    assert logits.isfinite().all()


@pytest.mark.parametrize("acts", [False, True])
def test_either_network_may_choose_the_actions(acts):
    model, policy = MDP(), built(target_network=TargetNetwork(acts=acts), epsilon=(0.0, 0.0, 0))
    online, target = (table(network, model).argmax(dim=1) for network in (policy.online, policy.target))
    assert (online != target).any()
    logits, _ = policy(model.features(torch.arange(NUM_STATES)))
    assert torch.equal(logits.argmax(dim=1), target if acts else online)


def test_schedules_go_on_where_they_stopped():
    anneal = {"n_step": 3, "anneal": Anneal(10, 0.5, updates=10)}
    policy = built(anneal)
    policy.real_steps = 40
    for _ in range(7):
        policy.updated()
    policy.reset(keep=0.5)
    for _ in range(4):
        policy.updated()
    again = built(anneal)
    again.load_state_dict(policy.state_dict())
    assert again.exploration == policy.exploration < 1
    assert (again.updates, again.reset_at) == (11, 7)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Targets(n_step=0), "n_step must be at least 1"),
        (lambda: TargetNetwork(every=0), "target_network.every must be at least 1"),
        (lambda: Targets(discount=1.5), "discount must be from 0 to 1: got 1.5"),
        (lambda: Targets(discount=1.0, anneal=Anneal()), "both discounts must be less than 1"),
        (lambda: Anneal(n_step=0), "anneal.n_step must be at least 1"),
        (lambda: Epsilon(end=-0.1), "epsilon.end must be from 0 to 1"),
        (lambda: Epsilon(steps=-1), "epsilon.steps must be at least 0"),
        (lambda: Distribution(atoms=1), "distribution.atoms must be at least 2"),
        (lambda: Distribution(low=3.0, high=3.0), "distribution.high must be more than 3.0"),
        (lambda: Augmentation(shift=-1), "augmentation.shift must be at least 0"),
        (lambda: Network(channels=(8, 8)), "channels of three stages"),
        (lambda: Network(hidden=(0,)), "at least 1 unit"),
        (lambda: built(augmentation=Augmentation()), "augmentation changes pictures: set it to null for vectors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_get_one_line(make, words):
    with pytest.raises(UserError, match=words) as raised:
        make()
    assert "\n" not in str(raised.value)


# Learning.


def learn(policy: QLearning, updates: int, batch, model) -> None:
    optimizer = torch.optim.AdamW(policy.parameter_groups())
    for _ in range(updates):
        optimizer.zero_grad()
        policy.loss(batch(), model).total.backward()
        optimizer.step()
        policy.updated()


LEARNERS = {
    "double": {},
    "plain": {"targets": {"double": False}, "dueling": False},
    "layer_norm": {"layer_norm": True},
    "first": {"targets": {"rows": "first"}},
    "c51": {"distribution": Distribution(51, -20.0, 40.0)},
    "c51 first": {"targets": {"rows": "first", "double": False}, "distribution": Distribution(51, -20.0, 40.0)},
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=pytest.mark.slow if name in ("first", "c51", "plain") else ())
        for name, options in LEARNERS.items()
    ],
)
def test_the_values_of_a_decision_problem_are_learned_exactly(options):
    """From nothing but random play, in windows over ends and cuts, as DQN on observations that are the features."""
    mdp, model = MDP(), IdentityModel()
    model.build_from(Spec((NUM_STATES,), 1, NUM_ACTIONS))
    played = mdp.play(envs=40, rows=120)
    played = played.replace(observation=F.one_hot(mdp.encode(played), NUM_STATES).float())
    assert (~played.has_successor()).float().mean() > 0.2

    def batch():
        env, start = torch.randint(40, (64, 1)), torch.randint(120 - 4, (64, 1))
        windows = played[env, start + torch.arange(4)]
        return windows.replace(state=model.encode(windows))

    policy = built(hidden=(64,), optimization=Optimization(3e-3), target_network=TargetNetwork(1.0, 20), **options)
    first = policy.targets.rows == "first"  # a third of the transitions
    learn(policy, 3000 if first else 1200, batch, model)
    found, optimal = policy.values(table(policy.online, mdp)), mdp.optimal()
    assert (found - optimal).abs().max() < 0.05 * (optimal.max() - optimal.min())
    assert mdp.values(F.one_hot(found.argmax(dim=1), NUM_ACTIONS).float()).mean() > 0.99 * optimal.amax(dim=1).mean()
