"""Evolution in worlds that are known by heart."""

import gymnasium
import numpy as np
import pytest
import torch

from datamodules.environments.control import ControlEnvironments
from modules.errors import UserError
from modules.imagination import imagine
from modules.policies.linear import LinearController
from modules.world_model import Spec
from pipelines.dreams.evolution import Evolution, bytes_per_dream, dreamed_returns, real_returns
from pipelines.machine.memory import free_bytes
from tests.fakes import PerfectCartPole, PerfectModel


def cart_pole() -> tuple[PerfectCartPole, LinearController]:
    model, controller = PerfectCartPole(), LinearController()
    model.build_from(Spec((4,), 1, 2))
    controller.build((4,), 2)
    return model, controller


def search(covariance="full", seed=3) -> Evolution:
    return Evolution(np.zeros(10), 0.5, 8, covariance, seed)


def climb(evolution: Evolution, generations: int) -> np.ndarray:
    for _ in range(generations):
        vectors = evolution.ask()
        fitness = -((vectors - 1) ** 2).sum(axis=1)
        evolution.tell(fitness)
    return evolution.mean


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_more_is_better(covariance):
    assert np.abs(climb(search(covariance), 150) - 1).max() < 0.01


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_it_goes_on_as_if_nothing_had_happened(covariance):
    """From plain data, which a checkpoint may hold."""
    straight, cut = search(covariance), search(covariance)
    climb(straight, 30)
    climb(cut, 20)
    resumed = Evolution.restore(cut.state_dict())
    assert resumed.generation == 20
    climb(resumed, 10)
    assert np.array_equal(straight.mean, resumed.mean)
    assert np.array_equal(straight.ask(), resumed.ask())


def test_draws_are_its_own():
    np.random.seed(9)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(9)  # noqa: NPY002
    assert np.array_equal(climb(search(), 5), climb(search(), 5))
    assert not np.array_equal(search().ask(), search(seed=4).ask())
    assert np.random.random() == expected  # noqa: NPY002


def test_a_fitness_that_is_no_number():
    evolution = search()
    evolution.ask()
    with pytest.raises(UserError, match="earned nan"):
        evolution.tell(np.array([np.nan] + 7 * [0.0]))


def test_the_fake_cart_pole_is_gymnasiums():
    model, _ = cart_pole()
    environment = gymnasium.make("CartPole-v1")
    observation, _ = environment.reset(seed=0)
    over, steps = False, 0
    while not over:
        action = int(observation[2] + 0.5 * observation[3] > 0)
        after, reward, continuation = model.step(torch.from_numpy(observation)[None], torch.tensor([action]))
        observation, real_reward, terminated, truncated, _ = environment.step(action)
        torch.testing.assert_close(after[0], torch.from_numpy(observation), rtol=1e-4, atol=1e-5)
        assert (float(reward), float(continuation)) == (real_reward, 1 - terminated)
        over, steps = terminated or truncated, steps + 1
    assert steps > 30


def test_a_population_earns_what_each_would_alone():
    """Compared with `imagine` under each controller: DotWorld ends at walls."""
    model, controller = PerfectModel(), LinearController()
    controller.build(model.feature_shape, 4)
    vectors, starts = torch.randn(6, len(controller.vector)), torch.zeros(5, 4, 12, 12, dtype=torch.uint8)
    starts[torch.arange(5), -1, torch.arange(5), torch.tensor([2, 5, 6, 7, 9])] = 230
    returns, steps = dreamed_returns(model, controller, vectors, starts, horizon=16)
    assert (returns.shape, steps) == ((6, 5), 16 * 30)
    for p in range(6):
        controller.adopt(vectors[p])
        dream = imagine(model, controller, starts, 16)
        reached = torch.cat([torch.ones(5, 1), dream.continuation[:, :-1].cumprod(dim=1)], dim=1)
        torch.testing.assert_close(returns[p], (reached * dream.reward)[:, :-1].sum(dim=1))
    assert returns.unique().tolist() == [-1.0, 0.0, 1.0]


def test_dreams_are_over_when_nobody_is_left():
    model, controller = cart_pole()
    _, steps = dreamed_returns(model, controller, torch.zeros(2, 10), torch.zeros(3, 4), horizon=1000)
    assert steps == 6 * 16, "a cart that is pushed one way loses its pole in ten steps"


def test_in_reality_every_vector_plays_its_episodes():
    """The same linear policies, stepped one by one in Gymnasium."""
    model, controller = cart_pole()
    vectors = torch.randn(3, 10)
    environment = ControlEnvironments("CartPole-v1", 6, seed=5)
    returns, steps = real_returns(model, controller, vectors, environment, horizon=60)
    assert steps == int(returns.sum())
    for p in range(3):
        weight = vectors[p].view(2, 5)
        for e in range(2):
            plain = gymnasium.make("CartPole-v1")
            observation, _ = plain.reset(seed=int(environment.seeds[2 * p + e]))
            total, over = 0.0, False
            while not over and total < 60:
                action = int((weight[:, :4] @ torch.from_numpy(observation) + weight[:, 4]).argmax())
                observation, reward, terminated, truncated, _ = plain.step(action)
                total, over = total + reward, terminated or truncated
            assert total == returns[p, e]


def test_memory_is_counted():
    """At least the states and the scores of a dream; the more the larger they are."""
    model, controller = cart_pole()
    small = bytes_per_dream(model, controller)
    assert small > 4 * (4 + 4 + 2)
    dots, large = PerfectModel(), LinearController()
    large.build(dots.feature_shape, 4)
    assert bytes_per_dream(dots, large) > 4 * 4 * 144 > small
    free = free_bytes(torch.device("cpu"))
    assert free is None or free > 2**20
