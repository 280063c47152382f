import copy

import pytest
import torch
import torch.nn.functional as F

from modules.batch import Batch
from modules.errors import UserError
from modules.imagination import imagine
from modules.optimization import Optimization
from modules.states.mlp_ensemble import MLPEnsemble
from modules.world_model import Spec, WorldModel

SPEC = Spec((3,), 1, 2)
TORCH_RNG = torch.tensor([0.1, 0.4, 0.0])
ARROW = torch.tensor([[-0.5, 0.2, 0.0], [0.5, -0.1, 0.0]])
TURN = torch.tensor([[0.9, 0.2, 0.0], [-0.3, 0.8, 0.0], [0.0, 0.0, 1.0]])


def make(spec=SPEC, **options) -> MLPEnsemble:
    torch.manual_seed(0)
    model = MLPEnsemble(**{"num_members": 3, "num_elites": 2, "hidden_size": 32, "num_layers": 2, **options})
    model.build_from(spec)
    return model.train()


def copy_of(model, **options) -> MLPEnsemble:
    other = make(**options)
    other.load_state_dict(model.state_dict())
    return other.eval()


def linear_world(number: int, scale: float = 1.0, offset: float = 0.0) -> Batch:
    """(number, 2) rows of a noisy linear world: a third number stays 7, the first ends the episode beyond 0.8."""
    state = scale * torch.randn(number, 3) + offset
    state[:, 2] = 7.0
    action = torch.randint(2, (number,))
    after = state @ TURN + ARROW[action] + TORCH_RNG * torch.randn(number, 3)
    return pairs(state, action, after, reward=2 * state[:, 0] - action, terminated=after[:, 0] > 0.8)


def pairs(state, action, after, reward, terminated, closed=None) -> Batch:
    """Transitions as windows of two rows; the second is no more than what the first led to."""
    zeros = torch.zeros(len(state))
    closed = terminated if closed is None else closed
    return Batch(
        action=torch.stack([action, zeros.long()], dim=1),
        reward=torch.stack([reward, zeros], dim=1).float(),
        continuation=torch.stack([1 - terminated.float(), zeros + 1], dim=1),
        is_first=torch.zeros(len(state), 2, dtype=torch.bool),
        is_last=torch.stack([torch.zeros_like(closed), closed], dim=1),
        observation=torch.stack([state, after], dim=1),
    )


def join(*batches: Batch) -> Batch:
    columns = zip(*(batch.tensors() for batch in batches), strict=True)
    merged = iter([torch.cat(column) for column in columns])
    return batches[0].map(lambda _: next(merged))


def learn(model, batch, updates: int, batch_size: int = 128) -> MLPEnsemble:
    optimizer = torch.optim.AdamW(model.parameter_groups())
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = model.optimization.lr * (1 - update / updates)
        total = model.loss(batch[torch.randint(batch.shape[0], (batch_size,))]).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return model


def gradients(model, batch) -> list[torch.Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    model.loss(batch).total.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.fixture(scope="module")
def learned() -> MLPEnsemble:
    """Learned the noisy linear world."""
    torch.manual_seed(0)
    batch = linear_world(2000)
    model = make(optimization=Optimization(3e-3))
    model.refit(batch)
    return learn(model, batch, 600).eval()


# The contract.


@pytest.mark.parametrize("sampling", ["step", "dream"])
def test_shapes_types_and_what_is_carried(sampling):
    model = make(sampling=sampling)
    batch = linear_world(5)
    width = 3 + (sampling == "dream")
    assert (model.state_shape, model.feature_shape) == ((width,), (3,))
    total, parts, states, _ = model.loss(batch)
    assert (total.shape, states.shape, states.requires_grad) == ((), (5, 2, width), False)
    assert all(torch.isfinite(value) and not value.requires_grad for value in parts.values())
    initial = model.initial(5)
    assert (initial.shape, initial.dtype) == ((5, width), torch.float32)
    observed = model.observe(initial, batch.action[:, 0], batch.observation[:, 1], batch.is_first[:, 1])
    assert torch.equal(model.features(observed), batch.observation[:, 1])
    assert torch.equal(model.decode(observed), batch.observation[:, 1])
    assert torch.equal(observed[:, 3:], initial[:, 3:])
    encoded = model.encode(batch)
    assert torch.equal(model.features(encoded[:, 1]), batch.observation[:, 1])
    torch.manual_seed(3)
    encoded = model.encode(batch)
    torch.manual_seed(3)
    assert torch.equal(WorldModel.encode(model, batch), encoded), "encode is a scan over observe"
    state, reward, continuation = model.step(observed, batch.action[:, 0])
    assert (state.shape, reward.shape, continuation.shape) == ((5, width), (5,), (5,))
    assert {tensor.dtype for tensor in (state, reward, continuation)} == {torch.float32}
    assert ((continuation > 0) & (continuation < 1)).all()
    assert torch.equal(state[:, 3:], observed[:, 3:])
    dreamed = imagine(model, None, encoded[:, 0], 4, actions=torch.zeros(5, 4, dtype=torch.int64))
    assert (dreamed.state[..., 3:] == dreamed.state[:, :1, 3:]).all()


def test_a_dream_stays_with_its_member_and_a_step_draws_one_of_the_elites(learned):
    dreamer, stepper = copy_of(learned, sampling="dream", temperature=0.0), copy_of(learned, temperature=0.0)
    for model in (dreamer, stepper):
        model.elites.copy_(torch.tensor([2, 0]))
    state = torch.tensor([0.5, -1.0, 7.0]).expand(400, 3)
    action = torch.zeros(400, dtype=torch.int64)
    drawn = dreamer.initial(400)[:, 3]
    assert set(drawn.tolist()) == {0.0, 2.0}
    assert 150 < (drawn == 0).sum() < 250
    after = dreamer.step(torch.cat([state, drawn[:, None]], dim=1), action).state
    by_member = [
        dreamer.step(torch.cat([state[:1], torch.tensor([[m]])], dim=1), action[:1]).state[0, :3] for m in (0.0, 2.0)
    ]
    assert (by_member[0] - by_member[1]).abs().max() > 1e-4
    for member, expected in zip((0, 2), by_member, strict=True):
        torch.testing.assert_close(after[drawn == member, :3], expected.expand(int((drawn == member).sum()), 3))
    after = stepper.step(state, action).state
    distances = torch.cdist(after, torch.stack(by_member))
    assert (distances.min(dim=1).values < 1e-5).all()
    assert 150 < (distances.argmin(dim=1) == 0).sum() < 250


def test_one_hot_weights_act_as_the_action_they_stand_for(learned):
    state, action = torch.randn(50, 3), torch.randint(2, (50,))
    steps = []
    for given in (action, F.one_hot(action, 2).float()):
        torch.manual_seed(2)
        steps.append(learned.step(state, given))
    assert all(map(torch.equal, *steps))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_gradients_flow_to_actions_and_states(learned, temperature):
    model = copy_of(learned, temperature=temperature)
    weight = torch.tensor([1.0, -2.0, 0.5])

    def value(state, action):
        torch.manual_seed(4)
        after, reward, continuation = model.step(state, action)
        return (after @ weight + 3 * reward + continuation).sum()

    arguments = [torch.randn(4, 3) + torch.tensor([0, 0, 7.0]), torch.rand(4, 2)]
    for leaf in arguments:
        leaf.requires_grad_()
    found = torch.autograd.grad(value(*arguments), arguments)
    with torch.no_grad():
        for argument, gradient in zip(arguments, found, strict=True):
            expected = torch.zeros_like(argument)
            for index in range(argument.numel()):
                step = torch.zeros(argument.numel())
                step[index] = 1e-2
                values = [value(*(x + s * step.view_as(x) if x is argument else x for x in arguments)) for s in (1, -1)]
                expected.view(-1)[index] = (values[0] - values[1]) / 2e-2
            torch.testing.assert_close(gradient, expected, rtol=0.02, atol=0.02)
            assert gradient.abs().max() > 0.1


def test_temperature_scales_the_noise_of_a_step_and_not_its_reward(learned):
    model = copy_of(learned)
    model.elites.fill_(1)
    state, action = torch.tensor([0.3, 0.3, 7.0]).expand(4000, 3), torch.ones(4000, dtype=torch.int64)
    spread = {}
    for temperature in (0.0, 1.0, 2.0):
        model.temperature = temperature
        after, reward, _ = model.step(state, action)
        spread[temperature] = after.std(dim=0)
        assert reward.std() < 1e-5
    assert (spread[0.0] < 1e-5).all()
    torch.testing.assert_close(spread[1.0], TORCH_RNG, rtol=0.25, atol=1e-6)
    torch.testing.assert_close(spread[2.0], 2 * spread[1.0], rtol=0.1, atol=1e-6)


def test_a_checkpoint_keeps_everything(learned):
    other = copy_of(learned)
    state, action = torch.randn(20, 3), torch.randint(2, (20,))
    steps = []
    for model in (learned, other):
        torch.manual_seed(5)
        steps.append(model.step(state, action))
    assert all(map(torch.equal, *steps))
    assert torch.equal(other.elites, learned.elites)


def test_mistakes_are_told():
    with pytest.raises(UserError, match="num_elites must be between 1 and num_members, 3: got 4"):
        make(num_elites=4)
    with pytest.raises(UserError, match="num_layers"):
        make(num_layers=0)
    with pytest.raises(UserError, match="vectors"):
        make(Spec((1, 84, 84), 4, 3))
    with pytest.raises(UserError, match="sequence_length"):
        make().loss(linear_world(4)[:, :1])


# Learning.


def test_the_noisy_world_is_learned(learned):
    validation_windows = linear_world(1000)
    parts = learned.loss(validation_windows).logs
    # what noise leaves to be explained: the third number never changes, so it does not count
    state, after = validation_windows.observation[:, 0], validation_windows.observation[:, 1]
    bound = ((TORCH_RNG / (after - state).std(dim=0))[:2] ** 2).mean().sqrt()
    assert bound * 0.9 < parts["nrmse"] < bound * 1.15
    step = learned.step(state, validation_windows.action[:, 0])
    assert (step.reward - validation_windows.reward[:, 0]).abs().mean() < 0.1
    assert (step.state[:, 2] == 7).all(), "what never changed stays exactly as it is"


def test_the_chance_of_termination_is_learned(learned):
    validation_windows = linear_world(1000)
    state, action = validation_windows.observation[:, 0], validation_windows.action[:, 0]
    mean = (state @ TURN + ARROW[action])[:, 0]
    truth = torch.distributions.Normal(mean, TORCH_RNG[0]).cdf(torch.tensor(0.8))
    with torch.no_grad():
        predicted = torch.stack([learned.step(state, action).continuation for _ in range(50)]).mean(dim=0)
    assert (truth - predicted).abs().mean() < 0.04
    assert (truth - truth.mean()).abs().mean() > 0.25, "what a constant would miss it by"


def test_intervals_cover_what_they_promise(learned):
    validation_windows = linear_world(500)
    state, action = validation_windows.observation[:, 0], validation_windows.action[:, 0]
    samples = learned.step(state.repeat(200, 1), action.repeat(200)).state.view(200, 500, 3)[..., :2]
    for width, low, high in ((0.9, 0.8, 0.97), (0.5, 0.4, 0.6)):
        bounds = samples.quantile(torch.tensor([0.5 - width / 2, 0.5 + width / 2]), dim=0)
        after = validation_windows.observation[:, 1, :2]
        covered = ((after > bounds[0]) & (after < bounds[1])).float().mean(dim=0)
        assert (covered > low).all(), (width, covered)
        assert (covered < high).all(), (width, covered)


def test_every_member_draws_transitions_of_its_own():
    model, batch = make(), linear_world(64)
    for layer in (model.network.input, *model.network.hidden, model.network.output):
        layer.weight.data[:] = layer.weight[:1].clone()
        layer.bias.data[:] = layer.bias[:1].clone()
    first = model.network.input.weight
    gradients(model, batch)
    assert (first.grad[0] - first.grad[1]).abs().max() > 1e-3
    model.eval()
    gradients(model, batch)
    torch.testing.assert_close(first.grad[0], first.grad[1])


def test_a_termination_teaches_and_what_follows_an_end_or_a_cut_does_not():
    model = make()
    rows = [linear_world(20) for _ in range(3)]
    batch = Batch(*(torch.cat(fields, dim=1) for fields in zip(*(r.tensors() for r in rows), strict=True)))
    batch.is_first[:, 2] = True  # rows 1 and 3 are cut off
    batch.is_last[:, 3] = True
    before = gradients(model, batch)
    for where in (1, 3):
        batch.action[:, where] = 1 - batch.action[:, where]
        batch.reward[:, where] += 5
        batch.continuation[:, where] = 0
    assert all(map(torch.equal, before, gradients(model, batch)))
    batch.observation[:, 3] += 1
    assert not any(map(torch.equal, before, gradients(model, batch))), "the vector that closes an episode is a target"


def test_a_batch_that_is_a_single_cut_teaches_nothing():
    model, batch = make(), linear_world(6)
    batch.is_first[:, 1] = True
    state = copy.deepcopy(model).state_dict()
    gradients(model, batch)
    for network in (model.network, model.continuation):
        assert all((parameter.grad == 0).all() for parameter in network.parameters())
    model.refit(batch)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items() if name != "_extra_state")


def test_bfloat16():
    model, batch = make(), linear_world(64)
    model.refit(batch)
    with torch.autocast("cpu", torch.bfloat16):
        total = model.loss(batch).total
        state = model.encode(batch)[:, 0]
        after = model.step(state, batch.action[:, 0])
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert {tensor.dtype for tensor in (total, *after)} == {torch.float32}


# Refitting.


def test_inputs_and_outcomes_are_standardised():
    model, batch = make(), linear_world(3000, scale=5.0, offset=100.0)
    batch.is_first[-1, 1] = True
    batch.observation[-1] = 1e9
    model.refit(batch)
    rows = model.transitions(batch[:-1])
    vectors = model.standardised(torch.cat([rows.state, rows.after]))
    outcomes = (rows.outcome - model.outcome_mean) / model.outcome_std
    for values, varies in ((vectors, [0, 1]), (outcomes, [0, 1, 3])):
        torch.testing.assert_close(values[:, varies].mean(dim=0), torch.zeros(len(varies)), rtol=0, atol=1e-3)
        torch.testing.assert_close(values[:, varies].std(dim=0), torch.ones(len(varies)), rtol=0, atol=1e-3)
    assert (vectors[:, 2] == 0).all()
    inputs = model.inputs(rows.state, rows.action)
    assert torch.equal(inputs[:, :3], model.standardised(rows.state))
    assert torch.equal(inputs[:, 3:], F.one_hot(batch.action[:-1, 0], 2).float())
    assert model.outcome_std[2] == 0


def test_a_refit_changes_units_and_not_predictions(learned):
    model = copy_of(learned)
    probe = linear_world(300)
    state, action = probe.observation[:, 0], probe.action[:, 0]
    other = linear_world(300, scale=4.0, offset=-1.0)
    other.observation[..., 2] = torch.randn(300, 2) + 20  # changes for the first time

    def predictions(temperature):
        model.temperature = temperature
        torch.manual_seed(6)
        return model.step(state, action)

    before = [predictions(0.0), predictions(1.0)]
    units = model.input_std.clone(), model.outcome_std.clone()
    elites = model.elites.clone()
    model.refit(other)
    assert (model.input_std[:2] / units[0][:2] > 2).all()
    assert (model.outcome_std[:2] / units[1][:2] > 2).all()
    assert min(model.input_std[2], model.outcome_std[2]) > 0.5
    model.elites.copy_(elites)
    after = [predictions(0.0), predictions(1.0)]
    for old, new in zip(before[0], after[0], strict=True):
        torch.testing.assert_close(old, new, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(before[1].state[:, :2], after[1].state[:, :2], rtol=1e-3, atol=1e-3)
    assert (after[1].state[:, 2] != 7).any(), "it is uncertain from now on"
    units = model.input_std.clone(), model.outcome_std.clone()
    model.refit(probe)
    assert model.input_std[2] == units[0][2], "what stopped changing keeps its unit"
    assert model.outcome_std[2] == units[1][2]


def test_the_best_on_held_out_rows_are_the_elites():
    model, batch = make(num_members=5), linear_world(500)
    model.refit(batch)
    last = model.network.output
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 2.5, -0.2, -2.0, 2.0])[:, None].expand_as(last.bias))
    model.refit(batch)
    assert model.elites.tolist() == [0, 2]
    validation_windows = linear_world(100)
    validation_windows.observation[:, 1] = (
        validation_windows.observation[:, 0] + model.outcome_mean[:3] + 2 * model.outcome_std[:3]
    )
    validation_windows.reward[:, 0] = model.outcome_mean[3] + 2 * model.outcome_std[3]
    model.refit(batch, validation_windows)
    assert model.elites.tolist() == [4, 1]
