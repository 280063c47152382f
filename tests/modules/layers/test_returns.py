"""Returns against sums that are written down step by step."""

import itertools

import numpy as np
import pytest
import torch

from modules.batch import Batch
from modules.layers.returns import lambda_returns, n_step_parts, n_step_returns, reach_weights, weighted_mean

BATCH, LENGTH, DISCOUNT = 60, 9, 0.8


@pytest.fixture
def real() -> Batch:
    """Windows of random play that begin anywhere: ends, truncations, runs that were cut, closing rows at both edges.

    What an action that is not followed earned is NaN: nobody may look at it.
    """
    generator = np.random.default_rng(0)
    is_first, is_last = np.zeros((2, BATCH, LENGTH), bool)
    continuation = np.ones((BATCH, LENGTH), np.float32)
    events = {"end": 0, "truncation": 0, "cut": 0}
    for b in range(BATCH):
        opens, closes = generator.random(2) < 0.3
        for t in range(LENGTH):
            is_first[b, t], is_last[b, t] = opens and not closes, closes
            if closes:
                opens, closes = True, False
                continue
            event = generator.choice(["none", "end", "truncation", "cut"], p=[0.64, 0.14, 0.11, 0.11])
            continuation[b, t] = event != "end"
            opens, closes = event == "cut", event in ("end", "truncation")
            if event != "none" and t + 1 < LENGTH:
                events[event] += 1
    assert min(events.values()) > 20
    batch = Batch(
        action=torch.zeros(BATCH, LENGTH, dtype=torch.int64),
        reward=torch.randn(BATCH, LENGTH),
        continuation=torch.from_numpy(continuation),
        is_first=torch.from_numpy(is_first),
        is_last=torch.from_numpy(is_last),
    )
    batch.reward[:, :-1][~batch.has_successor()] = torch.nan
    batch.reward[:, -1] = torch.nan
    return batch


@pytest.fixture
def dreamed() -> Batch:
    """Dreams: nothing ends, but every step is survived with a probability."""
    shape = BATCH, LENGTH
    is_last = torch.zeros(shape, dtype=torch.bool)
    is_last[:, -1] = True
    reward = torch.randn(shape)
    return Batch(torch.zeros(shape, dtype=torch.int64), reward, torch.rand(shape), is_last & False, is_last)


def steps_left(batch: Batch, b: int, t: int) -> int:
    """How many steps of the window follow each other from row t on."""
    left = 0
    while t + left + 1 < batch.shape[1] and not batch.is_last[b, t + left] and not batch.is_first[b, t + left + 1]:
        left += 1
    return left


def n_step(batch: Batch, values: torch.Tensor, b: int, t: int, n: int) -> float:
    """r_t + gamma c_t r_{t+1} + ... + gamma^n c_t ... c_{t+n-1} V_{t+n}."""
    total, factor = 0.0, 1.0
    for k in range(n):
        total += factor * batch.reward[b, t + k].item()
        factor *= DISCOUNT * batch.continuation[b, t + k].item()
    return total + factor * values[b, t + n].item()


def each(batch: Batch):
    return itertools.product(range(BATCH), range(LENGTH - 1))


@pytest.mark.parametrize("kind", ["real", "dreamed"])
@pytest.mark.parametrize("n", [1, 3, 20])
def test_n_step_returns(request, kind, n):
    batch = request.getfixturevalue(kind)
    values = torch.randn(BATCH, LENGTH)
    returns = n_step_returns(batch.reward, batch.continuation, batch.has_successor(), values, DISCOUNT, n)
    assert returns.shape == (BATCH, LENGTH - 1)
    expected = [n_step(batch, values, b, t, min(n, steps_left(batch, b, t))) for b, t in each(batch)]
    assert returns.flatten().tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["real", "dreamed"])
@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_lambda_returns_are_the_mean_of_n_step_returns(request, kind, lambda_):
    """Sutton and Barto 2018, equation 12.3: (1 - lambda) lambda^(n - 1) each, the rest to the last one."""
    batch = request.getfixturevalue(kind)
    values = torch.randn(BATCH, LENGTH)
    returns = lambda_returns(batch.reward, batch.continuation, batch.has_successor(), values, DISCOUNT, lambda_)
    assert returns.shape == (BATCH, LENGTH - 1)
    for b, t in each(batch):
        left = steps_left(batch, b, t)
        expected = lambda_ ** max(0, left - 1) * n_step(batch, values, b, t, left)
        for n in range(1, left):
            expected += (1 - lambda_) * lambda_ ** (n - 1) * n_step(batch, values, b, t, n)
        assert returns[b, t].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["real", "dreamed"])
def test_less_the_values_they_are_generalised_advantages(request, kind):
    """Schulman et al. 2016, equation 16: discounted sums of temporal-difference errors."""
    batch = request.getfixturevalue(kind)
    values, lambda_ = torch.randn(BATCH, LENGTH), 0.9
    returns = lambda_returns(batch.reward, batch.continuation, batch.has_successor(), values, DISCOUNT, lambda_)
    for b, t in each(batch):
        advantage, factor = 0.0, 1.0
        for k in range(t, t + steps_left(batch, b, t)):
            error = n_step(batch, values, b, k, 1) - values[b, k].item()
            advantage += factor * error
            factor *= DISCOUNT * lambda_ * batch.continuation[b, k].item()
        assert (returns - values[:, :-1])[b, t].item() == pytest.approx(advantage, abs=1e-5)


def test_real_rows_count_where_something_follows(real):
    has_successor = real.has_successor()
    weights = reach_weights(real.continuation, has_successor)
    assert torch.equal(weights, has_successor.float())
    assert 0 < weights.mean() < 1


def test_dreamed_rows_count_as_likely_as_they_are_reached(dreamed):
    weights = reach_weights(dreamed.continuation, dreamed.has_successor())
    for b, t in each(dreamed):
        assert weights[b, t].item() == pytest.approx(np.prod(dreamed.continuation[b, :t].numpy()), abs=1e-6)


def test_a_window_that_goes_on_with_another_episode_counts_in_full_again(dreamed):
    is_first = torch.zeros_like(dreamed.is_first)
    is_first[:, 4] = True
    weights = reach_weights(dreamed.continuation, dreamed.replace(is_first=is_first).has_successor())
    assert (weights[:, 3] == 0).all()
    assert (weights[:, 4] == 1).all()
    assert torch.allclose(weights[:, 5], dreamed.continuation[:, 4])


def test_the_mean_of_rows_that_count():
    values, weights = torch.tensor([[1.0, 5.0, 100.0]]), torch.tensor([[0.5, 1.5, 0.0]])
    assert weighted_mean(values, weights) == 4
    assert weighted_mean(values, 0 * weights) == 0


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
def test_the_parts_of_n_step_returns_make_them(n):
    """Over ends, truncations, cuts and the end of the window, of real rows and of dreams."""
    length = 7
    values, reward = torch.randn(200, length), torch.randn(200, length)
    continuation = torch.where(torch.rand(200, length) < 0.5, torch.rand(200, length), 1.0)
    continuation[torch.rand(200, length) < 0.1] = 0.0
    has_successor = torch.rand(200, length - 1) > 0.15
    sums, factors, rows = n_step_parts(reward, continuation, has_successor, 0.9, n)
    expected = n_step_returns(reward, continuation, has_successor, values, 0.9, n)
    assert torch.allclose(sums + factors * values.gather(1, rows), expected, atol=1e-5)
    steps = rows - torch.arange(length - 1)
    assert steps.min() == 0
    assert steps.max() == min(n, length - 1)
