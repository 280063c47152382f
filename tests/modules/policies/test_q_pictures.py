"""Q-learning on pictures: first rows, augmentation, self-prediction, encoders and resets."""

import copy

import pytest
import torch
import torch.nn.functional as F

from modules.batch import Batch
from modules.errors import UserError
from modules.identity import IdentityModel
from modules.layers.augmentation import Augmentation
from modules.optimization import Optimization
from modules.policies.q_learning import QLearning
from modules.policies.q_network import Network, QNetwork
from modules.policies.q_settings import Anneal, Distribution, Targets
from modules.policies.self_prediction import SelfPrediction, prediction_losses
from modules.world_model import Spec

SIZE, ACTIONS, ROWS = 24, 3, 6
SMALL = Network(channels=(4, 4, 4), hidden=(8,))
C51 = Distribution(5, -2.0, 2.0)


class Counting(IdentityModel):
    """Counts the observations that become features."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def features(self, state):
        self.seen.append(len(state))
        return super().features(state)


def model() -> Counting:
    made = Counting()
    made.build_from(Spec((1, SIZE, SIZE), 2, ACTIONS))
    return made


def built(network=SMALL, targets=Targets(2, 0.9, "first"), **options) -> QLearning:
    policy = QLearning(network, targets, **options)
    policy.build((2, SIZE, SIZE), ACTIONS)
    for parameter in policy.target.parameters():
        parameter.lerp_(torch.randn_like(parameter), 0.1)
    return policy


def batch(windows=5, rows=ROWS, **changes) -> Batch:
    """Windows of noise; the second one begins with the last row of an episode, the third ends its episode at once."""
    is_first, is_last = (torch.zeros(windows, rows, dtype=torch.bool) for _ in range(2))
    continuation = torch.ones(windows, rows)
    is_last[1, 0] = is_first[1, 1] = True
    continuation[2, 0], is_last[2, 1], is_first[2, 2] = 0.0, True, True
    observation = torch.randint(256, (windows, rows, 2, SIZE, SIZE), dtype=torch.uint8)
    made = Batch(
        action=torch.randint(ACTIONS, (windows, rows)),
        reward=torch.randn(windows, rows),
        continuation=continuation,
        is_first=is_first,
        is_last=is_last,
        observation=observation,
        state=observation,
    )
    return made.replace(**changes)


# The first row of each window.


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("distribution", [None, C51], ids=["huber", "c51"])
def test_the_loss_of_first_rows_is_that_of_their_windows_one_by_one(double, distribution):
    """Each window against a window of its first row alone, whose target is made by hand."""
    policy, world, windows = (
        built(targets=Targets(2, 0.9, "first", double), distribution=distribution),
        model(),
        batch(),
    )
    losses = []
    for i in (0, 2, 3, 4):  # nothing follows the first row of the second window
        one = windows[i]
        features = one.state.float() / 255
        steps = 1 if i == 2 else 2
        outputs, later = policy.online(features[:1])[0, one.action[0]], features[steps : steps + 1]
        best = policy.values((policy.online if double else policy.target)(later)).argmax()
        target = policy.target(later)[0, best].detach()
        alive = one.continuation[:steps].prod()
        earned = one.reward[0] + (0.9 * one.reward[1] if steps == 2 else 0)
        if distribution is None:
            losses.append(F.smooth_l1_loss(outputs, earned + 0.9**steps * alive * target))
        else:
            returns = earned + 0.9**steps * alive * policy.atoms.returns
            wanted = policy.atoms.project(target.softmax(dim=0), returns)
            losses.append(-(wanted * outputs.log_softmax(dim=0)).sum())
    assert policy.loss(windows, world).total.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


def test_only_the_rows_that_are_needed_pass_the_networks():
    world = model()
    built().loss(batch(), world)
    assert world.seen == [5, 5], "the first rows, and the rows that bootstrap"
    world.seen.clear()
    built(self_prediction=SelfPrediction(3)).loss(batch(), world)
    assert world.seen == [5, 5, 15]


def test_first_rows_need_windows_that_hold_their_target():
    policy = built(targets=Targets(3, rows="first", anneal=Anneal(6, 0.5)))
    with pytest.raises(UserError, match=r"7 rows a window: data\.sampling\.sequence_length is 6") as raised:
        policy.loss(batch(), model())
    assert "\n" not in str(raised.value)
    dream = batch().replace(observation=None)
    assert policy.loss(dream, model()).total.isfinite(), "a dream bootstraps where it ends"
    with pytest.raises(UserError, match="self_prediction of 6"):
        built(self_prediction=SelfPrediction(6)).loss(batch(), model())


def test_all_rows_of_a_dream_are_learned_from():
    """A policy that learns from first rows alone treats a dream as one that learns from all rows does."""
    dream = batch().replace(observation=None)
    first, every = (built(targets=Targets(2, 0.9, rows)) for rows in ("first", "all"))
    every.load_state_dict(first.state_dict())
    assert first.loss(dream, model()).total == every.loss(dream, model()).total
    assert first.transitions(dream) == every.transitions(dream) > first.transitions(batch())
    assert (first.learned_rows(ROWS), every.learned_rows(ROWS)) == (1, ROWS - 1)


@pytest.mark.parametrize("rows", ["all", "first"])
def test_prioritised_windows_count_by_their_weight_and_are_told_their_loss(rows):
    policy, world = built(targets=Targets(2, 0.9, rows, double=False)), model()
    plain = batch()
    assert policy.loss(plain, world).priority is None
    weighed = {"weight": torch.full((5, ROWS), 0.25), "row": torch.zeros(5, ROWS, dtype=torch.int64)}
    around_events = policy.loss(plain.replace(extras={"weight": weighed["weight"]}), world)
    assert around_events.priority is None
    weighted = policy.loss(plain.replace(extras=weighed), world)
    assert torch.equal(weighted.total, around_events.total)
    assert weighted.total.item() == pytest.approx(0.25 * policy.loss(plain, world).total.item(), rel=1e-5)
    assert weighted.priority.shape == (5,)
    alone = [policy.loss(plain[i : i + 1], world).total for i in (0, 3)]
    assert torch.allclose(weighted.priority[[0, 3]], torch.stack(alone), rtol=1e-4)


# Annealing.


def test_horizons_change_exponentially():
    """n from 10 to 3 and 1 - gamma from .03 to .003, by equal factors (Schwarzer et al. 2023)."""
    targets = Targets(3, 0.997, anneal=Anneal(10, 0.97, 10_000))
    assert targets.at(0) == (10, pytest.approx(0.97))
    assert targets.at(5_000) == (round(10 * 0.3**0.5), pytest.approx(1 - (0.03 * 0.003) ** 0.5))
    assert targets.at(10_000) == targets.at(123_456) == (3, 0.997)
    assert [targets.at(n)[0] for n in range(0, 10_001, 1_000)] == sorted(
        (round(10 * 0.3 ** (n / 10)) for n in range(11)), reverse=True
    )
    assert Targets(5, 0.9).at(0) == (5, 0.9)


# Augmentation.


def test_every_row_that_is_learned_from_is_augmented():
    """A shift and a factor for each picture, drawn by torch's generator."""
    world, windows = model(), batch()
    plain = built()
    augmented = built(augmentation=Augmentation(2, 0.05))
    augmented.load_state_dict(plain.state_dict())
    losses = []
    for _ in range(2):
        torch.manual_seed(1)
        losses.append(augmented.loss(windows, world).total)
    assert losses[0] == losses[1] != plain.loss(windows, world).total
    assert augmented.loss(windows, world).total != losses[0], "other draws"
    nothing = built(augmentation=Augmentation(0, 0.0))
    nothing.load_state_dict(plain.state_dict())
    assert nothing.loss(windows, world).total == plain.loss(windows, world).total
    features = world.features(windows.state[:, 0])
    assert torch.equal(augmented(features)[0], plain(features)[0]), "who acts sees what is there"


# Self-prediction.


def test_the_loss_of_predictions_is_the_distance_of_unit_vectors():
    predicted, seen = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    follows = torch.tensor([[True, True, True], [True, False, True]])
    unit = F.normalize(predicted, dim=2) - F.normalize(seen, dim=2)
    distances = unit.square().sum(dim=2)
    expected = torch.stack([distances[0].sum(), distances[1, 0]]) / 3
    assert torch.allclose(prediction_losses(predicted, seen, follows), expected, atol=1e-5)


def test_self_prediction_adds_its_weight_and_teaches_the_encoder():
    world, windows = model(), batch()
    plain, policy = built(), built(self_prediction=SelfPrediction(3, 5.0))
    policy.online.load_state_dict(plain.online.state_dict())
    policy.target.load_state_dict(plain.target.state_dict())
    loss = policy.loss(windows, world)
    alone = plain.loss(windows, world).total
    assert loss.total.item() == pytest.approx((alone + 5 * loss.logs["self_prediction"]).item(), rel=1e-5)
    (loss.total - alone).backward()
    for p in (*policy.online.encoder.parameters(), *policy.predictor.parameters()):
        assert p.grad is not None
        assert p.grad.abs().sum() > 0
    assert all(p.grad is None for p in policy.target.parameters())


def test_latents_become_predictable():
    """A band that the actions move: the loss falls to a fraction of what other actions would leave."""
    action = torch.randint(ACTIONS, (64, 4))
    place = torch.randint(4, (64, 1)) + F.pad(action[:, :3].cumsum(dim=1), (1, 0))
    band = torch.arange(SIZE) // (SIZE // 4) == (place % 4)[..., None]
    observation = (255 * band)[:, :, None, :, None].expand(64, 4, 2, SIZE, SIZE).to(torch.uint8)
    nothing = torch.zeros(64, 4, dtype=torch.bool)
    windows = batch(64, 4, action=action, is_first=nothing, is_last=nothing, continuation=torch.ones(64, 4))
    windows = windows.replace(reward=torch.zeros(64, 4), observation=observation, state=observation)
    policy = built(
        Network(channels=(8, 8, 8), hidden=(32,), normalise=True), self_prediction=SelfPrediction(3),
        optimization=Optimization(3e-3),
    )  # fmt: skip
    world, optimizer = model(), torch.optim.AdamW(policy.parameter_groups())
    for _ in range(120):
        optimizer.zero_grad()
        policy.loss(windows, world).total.backward()
        optimizer.step()
        policy.updated()
    with torch.no_grad():
        found = policy.loss(windows, world).logs["self_prediction"]
        other = policy.loss(windows.replace(action=(action + 1) % ACTIONS), world).logs["self_prediction"]
    assert found < 0.2 * other, (found, other)


@pytest.mark.parametrize(
    ("network", "shape", "words"),
    [
        (SMALL, (5,), "self_prediction needs an encoder of pictures"),
        (Network(channels=(4, 4, 4), hidden=()), (2, SIZE, SIZE), "network.hidden to at least one width"),
    ],
)
def test_where_nothing_can_be_predicted(network, shape, words):
    policy = QLearning(network, self_prediction=SelfPrediction())
    with pytest.raises(UserError, match=words) as raised:
        policy.build(shape, ACTIONS)
    assert "\n" not in str(raised.value)


# Encoders.


@pytest.mark.parametrize("encoder", ["nature", "impala"])
@pytest.mark.parametrize("size", [42, 64, 84])
def test_pictures_of_every_usual_size(encoder, size):
    settings = Network(encoder, channels=(2, 4, 4), width=3, normalise=True, hidden=(8,))
    network = QNetwork(settings, (4, size, size), ACTIONS, atoms=5)
    latent = network.encode(torch.rand(2, 4, size, size))
    assert latent.shape[1:] == network.latent_shape
    assert latent.shape[1] == 12, "not three times the channels"
    assert torch.equal(latent.flatten(1).amax(dim=1), torch.ones(2))
    assert latent.min() == 0
    assert network.head(latent).shape == (2, ACTIONS, 5)
    assert network.project(latent).shape == (2, 8)


def test_dueling_logits_are_a_value_and_advantages_of_each_atom():
    network = built(distribution=C51).online
    x = torch.rand(3, 2, SIZE, SIZE)
    logits = network(x)
    seen = network.hidden(network.encode(x).flatten(1))
    assert torch.allclose(logits.mean(dim=1), network.value(seen), atol=1e-5)


# Resets.


def test_a_reset_keeps_a_share_of_the_encoder_and_nothing_else():
    policy = built(self_prediction=SelfPrediction(2))
    before = copy.deepcopy(policy)
    torch.manual_seed(5)
    fresh, predictor = policy._fresh()
    torch.manual_seed(5)
    policy.updates = 12
    policy.reset(keep=0.25)
    assert policy.reset_at == 12
    for held, old in ((policy.online, before.online), (policy.target, before.target)):
        for (name, now), was, new in zip(held.named_parameters(), old.parameters(), fresh.parameters(), strict=True):
            expected = 0.25 * was + 0.75 * new if name.startswith("encoder.") else new
            assert torch.allclose(now, expected, atol=1e-6), name
    for (name, now), was, new in zip(
        policy.predictor.named_parameters(), before.predictor.parameters(), predictor.parameters(), strict=True
    ):
        expected = 0.25 * was + 0.75 * new if name.startswith("transition.") else new
        assert torch.allclose(now, expected, atol=1e-6), name
    assert not any(p.requires_grad for p in policy.target.parameters())


def test_annealing_begins_again_after_a_reset():
    policy, world, windows = built(targets=Targets(1, 0.5, "first", anneal=Anneal(4, 0.1, 10))), model(), batch()
    horizons = []
    for update in range(15):
        horizons.append(policy.targets.at(policy.updates - policy.reset_at)[0])
        policy.updated()
        if update == 11:
            policy.reset(keep=1.0)
    assert horizons[0] == horizons[12] == 4
    assert horizons[10] == horizons[11] == 1
    assert policy.loss(windows, world).total.isfinite()


def test_the_optimizer_knows_what_a_reset_renews():
    policy = built(self_prediction=SelfPrediction(2))
    groups = policy.parameter_groups()
    renewed = {id(p) for group in groups if group.get("renewed") for p in group["params"]}
    kept = {id(p) for group in groups if not group.get("renewed") for p in group["params"]}
    encoder = [*policy.online.encoder.parameters(), *policy.predictor.transition.parameters()]
    assert kept == {id(p) for p in encoder}
    assert renewed | kept == {id(p) for p in policy.parameters() if p.requires_grad}
    assert not renewed & kept
