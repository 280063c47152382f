import numpy as np
import pytest
import torch

from modules.imagination import evaluating, imagine, straight_through
from tests.fakes import SIZE, PerfectModel, locate, play
from tests.modules.worlds import Smooth


class Fixed(torch.nn.Module):
    """Plays by the same logits everywhere, and remembers what it saw."""

    def __init__(self, logits) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits))
        self.seen: list[torch.Tensor] = []

    def forward(self, features):
        self.seen.append(features)
        return self.logits.expand(len(features), -1), features.mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """(30, 20) real rows, ends and truncations among them."""
    store = play(tmp_path_factory.mktemp("dots") / "store", 200, num_envs=3, num_validation_envs=0)
    env, start = np.meshgrid(np.arange(3), np.arange(0, 180, 18), indexing="ij")
    return store.gather(env.ravel(), start.ravel(), 20, frame_stack=4)


def test_a_perfect_model_dreams_what_really_happened(windows):
    model = PerfectModel()
    dreamed = imagine(model, None, model.encode(windows)[:, 0], 19, actions=windows.action[:, :-1])
    compared, ends = 0, 0
    for b in range(windows.shape[0]):
        for t in range(19):
            if windows.is_last[b, t]:
                break
            assert torch.equal(dreamed.state[b, t], windows.observation[b, t])
            assert torch.equal(dreamed.state[b, t + 1], windows.observation[b, t + 1])
            assert dreamed.reward[b, t] == windows.reward[b, t]
            assert dreamed.continuation[b, t] == windows.continuation[b, t]
            compared += 1
            ends += int(windows.continuation[b, t] == 0)
    assert torch.equal(dreamed.action[:, :-1], windows.action[:, :-1])
    assert compared > 200
    assert ends > 5


def test_a_dream_of_h_steps_is_h_rows_and_one_that_closes_it(windows):
    states = windows.observation[:, 0]
    dreamed = imagine(PerfectModel(), None, states, 7, actions=windows.action[:, :7])
    assert dreamed.shape == (30, 8)
    assert dreamed.state.shape == (30, 8, 4, SIZE, SIZE)
    assert torch.equal(dreamed.state[:, 0], states)
    assert dreamed.observation is None
    assert (dreamed.state.dtype, dreamed.action.dtype) == (torch.uint8, torch.int64)
    assert dreamed.reward.dtype == dreamed.continuation.dtype == torch.float32
    assert not dreamed.is_first.any()
    assert not dreamed.is_last[:, :-1].any()
    assert dreamed.is_last[:, -1].all()
    assert (dreamed.action[:, -1] == 0).all()
    assert (dreamed.reward[:, -1] == 0).all()
    assert (dreamed.continuation[:, -1] == 1).all()
    assert dreamed.has_successor().all()


def test_a_policy_acts_on_the_features_of_every_dreamed_state(windows):
    policy, model = Fixed([0.0, 0.0, 1e4, 0.0]), PerfectModel()
    dreamed = imagine(model, policy, windows.observation[:, 0], SIZE)
    assert (dreamed.action[:, :-1] == 2).all()
    x, _ = locate(dreamed.state[:, -1, -1:])
    assert (x == SIZE - 1).all(), "walking right leads to the right wall"
    reached = dreamed.reward[:, :-1] == 1
    assert reached.any(dim=1).all()
    assert torch.equal(dreamed.continuation[:, :-1] == 0, reached)
    assert len(policy.seen) == SIZE + 1, "the last state has a value too"
    for t, seen in enumerate(policy.seen):
        assert torch.equal(seen, model.features(dreamed.state[:, t]))


def test_actions_are_drawn_by_the_policys_logits(windows):
    probability = torch.tensor([0.5, 0.3, 0.15, 0.05])
    states = windows.observation[:, 0].repeat(20, 1, 1, 1)
    dreamed = imagine(PerfectModel(), Fixed(probability.log().tolist()), states, 10)
    drawn = dreamed.action[:, :-1]
    frequency = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    assert ((frequency - probability).abs() < 5 * (probability / drawn.numel()).sqrt()).all()


def test_dreams_leave_no_gradient_behind(windows):
    model, policy = PerfectModel(), Fixed([0.0, 0.0, 0.0, 0.0])
    dreamed = imagine(model, policy, windows.observation[:, 0], 3)
    assert not dreamed.reward.requires_grad
    assert not any(column.requires_grad for column in dreamed.extras.values())
    assert not dreamed.state.requires_grad
    assert model.one.grad is None
    assert policy.logits.grad is None
    assert model.one.requires_grad, "only the dream is free of gradients, not the model"


def test_either_a_policy_or_actions_choose(windows):
    states = windows.observation[:, 0]
    with pytest.raises(AssertionError):
        imagine(PerfectModel(), None, states, 3)
    with pytest.raises(AssertionError):
        imagine(PerfectModel(), Fixed([0.0] * 4), states, 3, actions=windows.action)


def test_a_policy_leaves_log_probabilities_and_values(windows):
    logits = [0.5, 1.0, -1.0, 0.0]
    model, states = PerfectModel(), windows.observation[:, 0]
    dreamed = imagine(model, Fixed(logits), states, 6)
    assert dreamed.extras.keys() == {"log_prob", "value"}
    expected = torch.tensor(logits).log_softmax(0)[dreamed.action[:, :-1]]
    assert torch.allclose(dreamed.extras["log_prob"][:, :-1], expected)
    assert (dreamed.extras["log_prob"][:, -1] == 0).all()
    features = model.features(dreamed.state.flatten(0, 1)).mean(dim=(1, 2, 3))
    assert torch.allclose(dreamed.extras["value"], features.view(30, 7)), "of the state that closes the dream as well"
    assert imagine(model, None, states, 6, actions=windows.action[:, :6]).extras == {}


class Moody(PerfectModel):
    """Notes in which mode it steps."""

    def step(self, state, action):
        self.modes = (*self.__dict__.get("modes", ()), self.training)
        return super().step(state, action)


@pytest.mark.parametrize("training", [True, False])
def test_dreams_are_dreamed_in_evaluation_mode(windows, training):
    model, policy = Moody().train(training), Fixed([0.0] * 4).train(not training)
    imagine(model, policy, windows.observation[:, 0], 2)
    assert model.modes == (False, False)
    assert (model.training, policy.training) == (training, not training)


def test_the_mode_comes_back_after_an_error():
    model, policy = PerfectModel(), Fixed([0.0]).eval()
    with pytest.raises(ZeroDivisionError), evaluating(model, None, policy):
        1 / model.training
    assert model.training
    assert not policy.training


def finite_differences(function, at: torch.Tensor, size: float = 1e-6) -> torch.Tensor:
    """Return the gradient of a function of a double tensor, number by number."""
    gradient = torch.zeros_like(at)
    for index in range(at.numel()):
        nudge = torch.zeros_like(at)
        nudge.view(-1)[index] = size
        gradient.view(-1)[index] = (function(at + nudge) - function(at - nudge)) / (2 * size)
    return gradient


def earned(dream) -> torch.Tensor:
    return (dream.continuation.cumprod(dim=1) * dream.reward).sum()


def test_gradients_reach_the_states_and_actions_of_a_dream():
    model = Smooth()
    states = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, 4, 3, dtype=torch.float64, requires_grad=True)
    earned(imagine(model, None, states, 4, actions=weights, gradient=True)).backward()
    given = weights.detach()
    expected = finite_differences(lambda at: earned(imagine(model, None, at, 4, actions=given)), states.detach())
    assert torch.allclose(states.grad, expected, rtol=1e-5)
    start = states.detach()
    expected = finite_differences(lambda at: earned(imagine(model, None, start, 4, actions=at)), given)
    assert torch.allclose(weights.grad, expected, rtol=1e-5)
    assert weights.grad.abs().min() > 0


def test_no_gradient_reaches_the_parameters_of_the_model():
    model = Smooth()
    states = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    before = model.step(states, torch.zeros(3, dtype=torch.int64)).reward.sum()  # as the model's own loss
    earned(imagine(model, None, states, 4, actions=torch.zeros(3, 4, dtype=torch.int64), gradient=True)).backward()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    before.backward()
    assert all(model.get_parameter(name).grad is not None for name in ("matrix", "push", "price"))


def test_actions_that_are_drawn_pass_gradients_on_to_their_probabilities():
    probabilities = torch.tensor([[0.2, 0.8], [0.5, 0.5]], requires_grad=True)
    taken = straight_through(torch.tensor([0, 1]), probabilities)
    assert torch.equal(taken.detach(), torch.eye(2))
    (taken * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert torch.equal(probabilities.grad, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
