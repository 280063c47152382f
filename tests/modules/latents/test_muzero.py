"""MuZero's networks and loss, on a tiny decision problem whose values are known."""

import copy
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F

from modules.batch import Batch
from modules.errors import UserError
from modules.identity import IdentityModel
from modules.imagination import imagine
from modules.latents.muzero import LossWeights, MuZero, scale_gradient
from modules.latents.muzero_networks import SIZES
from modules.latents.muzero_targets import TargetRule, make_targets
from modules.layers.scalars import compress, expand
from modules.world_model import Spec
from tests.grouped import grouped
from tests.modules.policies.mdp import DISCOUNT, MDP, NUM_ACTIONS, NUM_STATES

WORLD = MDP()
BEST = WORLD.optimal()
FRAMES, VECTORS = Spec((1, 12, 12), 4, NUM_ACTIONS), Spec((NUM_STATES,), 1, NUM_ACTIONS)


GROUPS = {
    "targets": (TargetRule(), {field.name: field.name for field in fields(TargetRule)}),
    "weights": (LossWeights(), {f"{field.name}_weight": field.name for field in fields(LossWeights)}),
}


def make(spec=VECTORS, **options) -> MuZero:
    torch.manual_seed(0)
    size = "vector" if len(spec.observation_shape) == 1 else "debug"
    small = {"size": size, "unroll": 3, "n_step": 2, "discount": DISCOUNT, "support": 21}
    model = MuZero(**grouped(small | options, **GROUPS))
    model.build_from(spec)
    return model


def play(envs: int, rows: int = 6) -> Batch:
    """Rows of the decision problem, its states one-hot, with its best policy and values beside them."""
    batch = WORLD.play(envs, rows)
    state = batch.observation[..., 0].long()
    extras = {"search_policy": (5 * BEST).softmax(dim=1)[state], "root_value": BEST.max(dim=1).values[state]}
    return batch.replace(observation=F.one_hot(state, NUM_STATES).float(), extras=extras)


def pictures(envs: int, rows: int = 6, spec=FRAMES) -> Batch:
    channels, height, width = spec.observation_shape
    frames = torch.randint(256, (envs, rows, channels * spec.frame_stack, height, width), dtype=torch.uint8)
    return play(envs, rows).replace(observation=frames)


def wake(model: MuZero) -> MuZero:
    """Let the last layers, which start at 0, say something."""
    for parameter in model.parameters():
        if parameter.abs().max() == 0 and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


# Shapes and contract.


@pytest.mark.parametrize("value_prefix", [0, 2])
@pytest.mark.parametrize("spec", [VECTORS, FRAMES])
def test_a_state_is_one_row(spec, value_prefix):
    model = wake(make(spec, value_prefix=value_prefix)).eval()
    batch = pictures(5) if spec is FRAMES else play(5)
    states = model.encode(batch)
    assert states.shape == (5, 6, *model.state_shape)
    assert len(model.state_shape) == 1
    assert model.initial(5).shape == states[:, 0].shape
    assert torch.allclose(model.observe(model.initial(5), None, batch.observation[:, 0], None), states[:, 0], atol=1e-5)
    after, reward, continuation = model.step(states[:, 0], batch.action[:, 0])
    assert after.shape == states[:, 0].shape
    assert (continuation == 1).all()
    logits, value = model.require_policy()(model.features(after))
    assert model.features(after).shape == (5, *model.feature_shape)
    assert logits.shape == (5, NUM_ACTIONS)
    assert value.shape == reward.shape == (5,)
    one_hot = F.one_hot(batch.action[:, 0], NUM_ACTIONS).float()
    assert torch.allclose(model.step(states[:, 0], one_hot).state, after, atol=1e-6)
    dream = imagine(model, model.policy, states[:, 0], 3)
    assert dream.state.shape == (5, 4, *model.state_shape)


@pytest.mark.parametrize("size", [name for name, size in SIZES.items() if size.halvings and name != "muzero"])
@pytest.mark.parametrize("side", [64, 42])
def test_sizes_for_pictures(size, side):
    spec = Spec((1, side, side), 2, NUM_ACTIONS)
    model = make(spec, size=size)
    height = side
    for _ in SIZES[size].halvings:
        height = -(-height // 2)
    assert model.feature_shape == (SIZES[size].latent, height, height)
    loss = model.loss(pictures(2, spec=spec)).total
    loss.backward()


def test_the_papers_latents():
    for size, channels in (("efficientzero", 64), ("muzero", 256)):
        with torch.device("meta"):
            model = MuZero(size=size, target_every=0)
            model.build(Spec((3, 96, 96), 4, 18))
        assert model.feature_shape == (channels, 6, 6)


def test_latents_are_scaled_unless_they_are_not():
    batch = pictures(5)
    features = make(FRAMES).features(make(FRAMES).encode(batch)[:, 0]).flatten(1)
    assert (features.amin(dim=1) == 0).all()
    assert torch.allclose(features.amax(dim=1), torch.ones(5))
    model = make(FRAMES, state_norm="none", norm="batch")
    raw = model.features(model.encode(batch)[:, 0]).flatten(1)
    assert not torch.allclose(raw.amax(dim=1), torch.ones(5))


def test_an_untrained_model_knows_nothing():
    model = make(value_prefix=2).eval()
    state = model.encode(play(5))[:, 0]
    logits, value = model.policy(model.features(state))
    assert (logits == 0).all()
    assert value.abs().max() < 1e-6
    assert model.step(state, torch.zeros(5, dtype=torch.int64)).reward.abs().max() < 1e-6


# The loss.


def test_gradients_are_scaled_exactly():
    x = torch.randn(7, requires_grad=True)
    y = scale_gradient(x, 0.5)
    assert torch.equal(y, x)
    assert torch.equal(torch.autograd.grad(y.square().sum(), x)[0], x.detach())


@pytest.mark.parametrize("root", ["full", "share"])
def test_the_loss_by_hand(root):
    """Every head, step by step; each unrolled step counts 1/K, and half the gradient passes a step."""
    model = wake(make(value_weight=0.3, bootstrap="root_value", entropy_weight=0.01, root_weight=root)).eval()
    batch = play(40)
    drawn = {"weight": torch.rand(40, 1).expand(40, 6), "row": torch.zeros(40, 6, dtype=torch.int64)}
    batch = batch.replace(extras=batch.extras | drawn)
    batch.is_first[::7, 2] = batch.is_last[::5, 0] = True  # runs that were cut, windows that teach nothing
    targets, support = model.compute_targets(batch), model.policy.support
    assert not targets.reward_known.all()
    state, total = model.networks.represent(batch.observation[:, 0]), torch.zeros(40)
    for k in range(4):
        share = 1 / 3 if k or root == "share" else 1
        if k:
            state, reward, _ = model.networks.advance(scale_gradient(state, 0.5), batch.action[:, k - 1])
            known = targets.reward_known[:, k - 1]
            total = total + share * known * support.losses(reward, targets.reward[:, k - 1])
        logits, value = model.policy.heads(model.features(state))
        policy = batch.extras["search_policy"][:, k]
        alive = targets.alive[:, k]
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        total = total + share * 0.3 * targets.value_known[:, k] * support.losses(value, targets.value[:, k])
        total = total + share * alive * (F.cross_entropy(logits, policy, reduction="none") - 0.01 * entropy)
    expected = (total * batch.extras["weight"][:, 0]).mean()
    loss, _, _, priority = model.loss(batch)
    del batch.extras["row"]
    assert model.loss(batch).priority is None, "windows that were not drawn by priority need none"
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    parameters = list(model.networks.parameters())
    for mine, other in zip(*(torch.autograd.grad(x, parameters) for x in (loss, expected)), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)
    _, value = model.policy(model.features(model.encode(batch)[:, 0]))
    assert torch.allclose(priority, (value - targets.value[:, 0]).abs() * ~batch.is_last[:, 0], atol=1e-5)


def test_bootstraps_of_the_search_or_of_the_target_network():
    batch = play(40).replace(reward=torch.zeros(40, 6))
    searched = make(bootstrap="root_value", n_step=1).compute_targets(batch)
    after = DISCOUNT * batch.continuation[:, 0] * batch.extras["root_value"][:, 1]
    assert torch.allclose(searched.value[:, 0], after * ~batch.is_last[:, 0])

    def size(model) -> float:
        return model.compute_targets(batch).value.abs().max().item()

    model = wake(make(n_step=1, target_every=2))
    assert size(model) < 1e-6, "the target network is untrained still"
    model.updated()
    assert size(model) < 1e-6
    model.updated()
    assert size(model) > 0.01
    assert size(wake(make(n_step=1, target_every=0))) > 0.01


def test_rows_that_no_return_ends_in_are_not_judged():
    model, batch = wake(make(n_step=3, target_every=0)), play(200, rows=7)
    some, every = model.bootstrap_rows(batch), model.bootstrap_values(batch.observation.flatten(0, 1)).view(batch.shape)
    assert (~some).float().mean() > 0.3
    assert (every != 0).all()
    expected = make_targets(batch, batch.reward, every, model.targets.unroll, 3, DISCOUNT).value
    assert torch.allclose(model.compute_targets(batch).value, expected)


def test_rewards_may_be_clipped():
    batch = play(40)
    clipped, raw = (make(clip_rewards=clip).compute_targets(batch).reward for clip in (True, False))
    assert raw.abs().max() > 1
    assert torch.equal(clipped, raw.clamp(-1, 1))


def test_old_rows_bootstrap_earlier():
    batch = play(3, rows=8)
    model = make(n_step=4, unroll=3, off_policy_correction=100, bootstrap="root_value")
    with pytest.raises(UserError, match=r"set data\.sampling\.prioritised"):
        model.loss(batch)
    age = torch.tensor([50.0, 150.0, 9999.0])[:, None].expand(3, 8)
    value = model.compute_targets(batch.replace(extras=batch.extras | {"age": age})).value
    for env, n_step in enumerate((4, 3, 1)):
        own = make(n_step=n_step, unroll=3, bootstrap="root_value").compute_targets(batch).value
        assert torch.allclose(value[env], own[env])
    assert not torch.allclose(
        value[2], make(n_step=4, unroll=3, bootstrap="root_value").compute_targets(batch).value[2]
    )


# Value prefix.


def test_rewards_are_differences_of_prefixes_and_the_memory_starts_anew():
    model = wake(make(value_prefix=2)).eval()
    networks = model.networks
    state = model.encode(play(9))[:, 0]
    prefixes, rewards, states = [], [], [state]
    for t in range(5):
        state, logits, reward = networks.advance(state, torch.full((9,), t % NUM_ACTIONS))
        prefixes.append(networks.support.decode(logits))
        rewards.append(reward)
        states.append(state)
    assert torch.allclose(rewards[0], prefixes[0])
    assert torch.allclose(rewards[1], prefixes[1] - prefixes[0])
    assert torch.allclose(rewards[2], prefixes[2]), "a new sum"
    assert torch.allclose(rewards[3], prefixes[3] - prefixes[2])
    assert torch.allclose(rewards[4], prefixes[4])
    assert [int(state[0, -1]) for state in states] == [0, 1, 2, 1, 2, 1]
    forgetful = states[2].clone()
    forgetful[:, networks.latent_width : -1] = 7.0
    again = networks.advance(forgetful, torch.full((9,), 2))
    assert torch.allclose(again[2], rewards[2], atol=1e-6), "nothing of the old sum is left"
    forgetful = states[1].clone()
    forgetful[:, networks.latent_width : -2] = 7.0
    assert not torch.allclose(networks.advance(forgetful, torch.full((9,), 1))[2], rewards[1], atol=1e-3)


# Consistency.


def test_consistency_pulls_unrolled_latents_towards_what_was_observed():
    model = make(consistency_weight=2.0)
    batch = play(32)
    batch = batch.replace(is_last=torch.zeros_like(batch.is_last), is_first=torch.zeros_like(batch.is_first))
    unrolled = model.encode(batch)[:, :4].detach().requires_grad_()
    losses = model.consistency_losses(batch, unrolled)
    assert losses.shape == (32, 3)
    assert ((losses > 0) & (losses < 2)).all()
    representation = list(model.networks.representation.parameters())
    gradients = torch.autograd.grad(losses.sum(), representation, allow_unused=True)
    assert all(gradient is None for gradient in gradients), "what was observed is a fixed goal"
    before = model.loss(batch).logs["consistency"]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(60):
        loss, parts, *_ = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert parts["consistency"] < 0.5 * before


def test_pictures_that_hardly_differ_do_not_agree_from_the_start():
    model, batch = make(FRAMES, consistency_weight=2.0).train(), pictures(32)
    frames = torch.full_like(batch.observation, 90)
    frames[..., 5, 5] = batch.observation[..., 5, 5]
    losses = model.consistency_losses(batch.replace(observation=frames), model.encode(batch)[:, :4])
    assert losses.mean() > 0.7


def test_switches_add_no_parameters_where_they_are_off():
    names = {name.partition(".")[0] for name, _ in make(target_every=0).named_parameters()}
    assert names == {"networks"}
    assert hasattr(make(consistency_weight=1.0), "projector")


# Normalisation.


def test_batch_normalisation_acts_by_its_running_statistics():
    model = wake(make(FRAMES, norm="batch"))
    batch = pictures(16)
    target = copy.deepcopy(model.target.state_dict())
    model.train().loss(batch)
    for name, value in model.target.state_dict().items():
        assert name.endswith("extra_state") or torch.equal(value, target[name]), "bootstrapping must not teach it"
    model.eval()
    together = model.encode(batch)[:, 0]
    alone = torch.cat([model.encode(batch[i : i + 1])[:, 0] for i in range(16)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_vectors_are_standardised_once():
    model = make()
    batch = play(200).replace(observation=3 + 5 * torch.randn(200, 6, NUM_STATES))
    model.refit(batch)
    for networks in (model.networks, model.target):
        assert torch.allclose(networks.representation.mean, torch.full((NUM_STATES,), 3.0), atol=0.6)
        assert torch.allclose(networks.representation.scale, torch.full((NUM_STATES,), 5.0), atol=0.5)
    model.updated()
    model.refit(batch.replace(observation=batch.observation + 9))
    assert model.networks.representation.mean.max() < 4


def test_a_vector_and_its_double_differ():
    vector = torch.eye(NUM_STATES)
    latents = [make().networks.represent(factor * vector) for factor in (1, 2)]
    assert (latents[0] - latents[1]).abs().max(dim=1).values.min() > 0.01


# It learns.


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"bootstrap": "root_value", "n_step": 1}, marks=pytest.mark.slow),
        {"value_prefix": 2, "consistency_weight": 0.5, "target_every": 20, "norm": "batch"},
    ],
    ids=["plain", "value prefix, consistency, target network"],
)
def test_it_learns_a_small_world(options):
    updates, model = 350, make(**options).train()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, 2 - 2 * i / updates))
    for _ in range(updates):
        loss = model.loss(play(96)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        model.updated()
    model.eval()
    states = torch.arange(NUM_STATES)
    latent = model.networks.represent(F.one_hot(states, NUM_STATES).float())
    logits, value = model.policy(model.features(latent))
    assert (logits.softmax(1) - (5 * BEST).softmax(1)).abs().max() < 0.1
    rewards = [model.step(latent, torch.full_like(states, action)).reward for action in range(NUM_ACTIONS)]
    assert (torch.stack(rewards, 1) - WORLD.earns).abs().mean() < 0.2
    two = model.step(model.step(latent, torch.zeros_like(states)).state, torch.ones_like(states)).reward
    expected = WORLD.earns[WORLD.after[:, 0], 1] * WORLD.continues[:, 0]
    assert (two - expected).abs().mean() < 0.3, "0 after an end"
    if "n_step" in options:
        # What random actions were worth. Cross-entropy takes means of compressed returns.
        after = BEST.max(dim=1).values[WORLD.after]
        returns = WORLD.earns + DISCOUNT * WORLD.continues * after
        assert (value - expand(compress(returns).mean(dim=1))).abs().mean() < 0.25  # 0.20 on some processors


# Mistakes.


def refusal(action) -> str:
    with pytest.raises(UserError) as raised:
        action()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_mistakes_get_one_line():
    assert "data.sampling.sequence_length is 5" in refusal(lambda: make().loss(play(2, rows=5)))
    bare = play(2).replace(extras={})
    assert "add search_policy to data.storage.extras" in refusal(lambda: make().loss(bare))
    bare = play(2).replace(extras={"search_policy": play(2).extras["search_policy"]})
    assert "add root_value to data.storage.extras" in refusal(lambda: make(bootstrap="root_value").loss(bare))
    assert "model.targets.unroll must be at least 1" in refusal(lambda: make(unroll=0))
    assert "model.targets.discount must be from 0 to 1" in refusal(lambda: make(discount=1.1))
    assert "does not see vectors: expected one of vector" in refusal(lambda: make(VECTORS, size="tiny"))
    assert "expected one of debug, tiny" in refusal(lambda: make(FRAMES, size="vector"))
    assert "IdentityModel has none" in refusal(IdentityModel().require_policy)
