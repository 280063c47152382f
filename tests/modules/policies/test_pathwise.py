"""Gradients through a world model, against finite differences of what they are the gradients of."""

import pytest
import torch
from torch.func import functional_call

from modules.errors import UserError
from modules.imagination import imagine
from modules.policies.pathwise import Pathwise
from modules.world_model import Spec
from tests.modules.policies.mdp import rows
from tests.modules.test_imagination import finite_differences
from tests.modules.worlds import Line, Smooth

HORIZON, DISCOUNT, LAMBDA = 3, 0.9, 0.8


def windows(states: torch.Tensor):
    """One row for each state, and a last one that closes its window."""
    zeros = [[0, 0]] * len(states)
    batch = rows(zeros, zeros, [[0.0, 0.0]] * len(states))
    is_last = torch.tensor([[False, True]] * len(states))
    return batch.replace(state=torch.stack([states, states], dim=1), is_last=is_last)


def test_the_gradient_is_that_of_the_returns_along_the_actions_that_were_drawn():
    torch.manual_seed(0)
    model, starts = Smooth(), torch.randn(5, 2, dtype=torch.float64)
    policy = Pathwise(
        HORIZON, hidden=[4], discount=DISCOUNT, lambda_=LAMBDA, entropy_coefficient=0.0, value_coefficient=0.0
    )
    policy.build((2,), 3)
    policy.double()
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter)
    torch.manual_seed(1)
    loss = policy.loss(windows(starts), model)
    loss.total.backward()
    torch.manual_seed(1)
    dream = imagine(model, policy, starts, HORIZON)
    drawn = torch.nn.functional.one_hot(dream.action[:, :-1], 3)
    parameters = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}

    def gain(name: str, value: torch.Tensor) -> torch.Tensor:
        """The weighted returns where one parameter of the actor is another, actions move as probabilities do."""
        state, states, rewards, continuations = starts, [starts], [], []
        for t in range(HORIZON):
            before = functional_call(policy, parameters, (dream.state[:, t],))[0].softmax(dim=1)
            now = functional_call(policy, parameters | {name: value}, (state,))[0].softmax(dim=1)
            state, reward, continuation = model.step(state, drawn[:, t] + now - before)
            states.append(state)
            rewards.append(reward)
            continuations.append(continuation)
        returns = functional_call(policy, parameters, (state,))[1]
        total, weight = 0, torch.cat([torch.ones(5, 1), dream.continuation[:, :-2].cumprod(dim=1)], dim=1)
        for t in range(HORIZON - 1, -1, -1):
            after = functional_call(policy, parameters, (states[t + 1],))[1]
            returns = rewards[t] + DISCOUNT * continuations[t] * ((1 - LAMBDA) * after + LAMBDA * returns)
            total = total + (weight[:, t] * returns).sum()
        return (total / weight.sum()).detach()

    assert torch.allclose(loss.logs["return"], gain("actor_head.bias", parameters["actor_head.bias"]))
    for name, parameter in policy.named_parameters():
        if name.startswith("critic"):
            assert parameter.grad is None or not parameter.grad.any(), "the actor does not raise what it is told"
            continue
        expected = finite_differences(lambda value, name=name: gain(name, value), parameter.detach())
        assert torch.allclose(-parameter.grad, expected, rtol=1e-4, atol=1e-8), name
        assert expected.any()


def test_it_learns_to_go_where_more_is_earned():
    torch.manual_seed(0)
    model = Line()
    model.build_from(Spec((1,), 1, 3))
    policy = Pathwise(horizon=5, hidden=[16], discount=0.9, entropy_coefficient=0.001)
    policy.build((1,), 3)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    for _ in range(200):
        loss = policy.loss(windows(4 * torch.rand(64, 1) - 2), model).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    logits, _ = policy(torch.tensor([[-1.5], [-0.5], [0.5], [1.5]]))
    assert logits.argmax(dim=1).tolist() == [2, 2, 0, 0]


def test_no_dream_starts_where_an_episode_is_closed():
    policy = Pathwise(horizon=1, num_dreams=2, hidden=[4])
    batch = windows(torch.arange(6.0).view(3, 2))
    assert policy.starts(batch).shape == (2, 2)
    policy.num_dreams = None
    assert torch.equal(policy.starts(batch), batch.state[:, 0])
    closed = batch.replace(is_last=torch.ones(3, 2, dtype=torch.bool))
    assert policy.loss(closed, Smooth()).total is None


@pytest.mark.parametrize("options", [{"horizon": 0}, {"num_dreams": 0}])
def test_impossible_numbers(options):
    with pytest.raises(UserError, match="horizon and num_dreams of at least 1"):
        Pathwise(**options)
