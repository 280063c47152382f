"""How actions are chosen, against slow computations of the same."""

import math

import numpy as np
import pytest
import torch

from modules.errors import UserError
from modules.world_model import Step
from pipelines.search.contract import Evaluation
from pipelines.search.rules import Dirichlet, Gumbel, Puct, Stop, Uct, considered_visits
from pipelines.search.search import Search
from tests.pipelines.search.worlds import Game, TableWorld


class Bandits:
    """Every action ends with its reward; what is evaluated says nothing of it."""

    def __init__(self, num_roots, num_actions, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.reward = torch.rand(num_roots, num_actions, generator=generator)
        self.logits = torch.randn(num_roots, num_actions, generator=generator)
        self.value = (self.logits.softmax(dim=1) * self.reward).sum(dim=1)
        self.roots = torch.arange(num_roots)

    def step(self, states, actions):
        return Step(states, self.reward[states, actions], torch.zeros(len(states)))

    def evaluate(self, states):
        return Evaluation(self.logits[states], self.value[states], None)


def slow_sequential_halving(scores, simulations):
    """Return the order in which actions of fixed scores are visited: rounds over the best that are left."""
    left = sorted(range(len(scores)), key=lambda action: -scores[action])
    phases, order = max(1, math.ceil(math.log2(len(scores)))), []
    while len(order) < simulations:
        for _ in range(max(1, simulations // (phases * len(left)))):
            order += left
        left = left[: max(2, len(left) // 2)]
    return order[:simulations]


@pytest.mark.parametrize("m", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("simulations", [1, 2, 16, 50, 200])
def test_considered_visits_are_those_of_sequential_halving(m, simulations):
    table = considered_visits(16, simulations)[m]
    scores = np.random.default_rng(0).normal(size=m)
    visits = np.zeros(m, int)
    for n, action in enumerate(slow_sequential_halving(scores, simulations)):
        # The best of those that have the visits the table asks for.
        asked = [a for a in range(m) if visits[a] == table[n]]
        assert action == max(asked, key=lambda a: scores[a])
        visits[action] += 1


def test_gumbel_visits_by_sequential_halving():
    bandits = Bandits(20, 9, seed=1)
    # Scores stand still: Q counts for nothing.
    result = Search(Gumbel(considered=5, c_scale=0, scale=0), Stop(24)).run(bandits.roots, bandits, bandits.evaluate)
    for b in range(20):
        best = bandits.logits[b].argsort(descending=True)[:5]
        order = slow_sequential_halving(bandits.logits[b][best].numpy(), 24)
        expected = np.zeros(9, int)
        np.add.at(expected, best.numpy()[order], 1)
        assert result.visits[b].tolist() == expected.tolist()
        assert result.action[b] == best[0]


@pytest.mark.parametrize("shift", [-1e6, 0.0, 1e6])
def test_gumbels_prior_does_not_depend_on_what_all_logits_have_in_common(shift):
    bandits = Bandits(10, 6, seed=2)
    bandits.logits = bandits.logits.round() + shift  # float32 holds whole numbers of that size exactly
    result = Search(Gumbel(scale=0), Stop(4)).run(bandits.roots, bandits, bandits.evaluate)
    assert np.allclose(result.prior.sum(axis=1), 1, atol=1e-6)
    assert np.allclose(result.prior, (bandits.logits.double() - shift).softmax(dim=1).numpy(), atol=1e-6)


def test_gumbels_policy_is_that_of_the_papers_equations():
    bandits = Bandits(10, 6, seed=2)
    result = Search(Gumbel(c_visit=50, c_scale=0.1), Stop(4)).run(
        bandits.roots, bandits, bandits.evaluate, generator=np.random.default_rng(0)
    )
    for b in range(10):
        n, q = result.visits[b], bandits.reward[b].double().numpy()
        prior = bandits.logits[b].double().softmax(dim=0).numpy()
        visited = n > 0
        weighted = (prior * q)[visited].sum() / prior[visited].sum()
        mixed = (float(bandits.value[b]) + n.sum() * weighted) / (1 + n.sum())
        completed = np.where(visited, q, mixed)
        scaled = (completed - completed.min()) / (completed.max() - completed.min())
        logits = np.log(prior) + (50 + n.max()) * 0.1 * scaled
        policy = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(result.policy[b], policy, atol=1e-5)
        np.testing.assert_allclose(result.q[b][visited], q[visited], rtol=1e-6)


@pytest.mark.parametrize("simulations", [2, 4, 16])
def test_gumbel_improves_the_policy_by_few_simulations(simulations):
    bandits = Bandits(4000, 8, seed=3)
    search = Search(Gumbel(c_scale=1), Stop(simulations))
    result = search.run(bandits.roots, bandits, bandits.evaluate, generator=np.random.default_rng(0))
    reward = bandits.reward.numpy()
    chosen = reward[np.arange(4000), result.action].mean()
    improved = (result.policy * reward).sum(axis=1).mean()
    assert chosen > bandits.value.mean() + 0.05
    assert improved > bandits.value.mean() + 0.03


def test_gumbel_draws_without_replacement_in_proportion_to_the_prior():
    bandits = Bandits(1, 5)
    bandits.roots = torch.zeros(20_000, dtype=torch.int64)
    result = Search(Gumbel(c_scale=0), Stop(1)).run(
        bandits.roots, bandits, bandits.evaluate, generator=np.random.default_rng(0)
    )
    prior = bandits.logits[0].softmax(dim=0)
    np.testing.assert_allclose(np.bincount(result.action, minlength=5) / 20_000, prior, atol=0.015)


def test_noise_is_drawn_from_the_generator_of_each_search():
    world = TableWorld(num_actions=6)

    def visits(search, generator):
        return search.run(torch.arange(8), world, world.evaluate, generator=generator).visits

    for search in (Search(Gumbel()), Search(noise=Dirichlet(fraction=0.5))):
        generator = np.random.default_rng(0)
        first, second = visits(search, generator), visits(search, generator)
        assert (first != second).any()
        np.testing.assert_array_equal(first, visits(search, np.random.default_rng(0)))


def test_dirichlet_noise_is_for_legal_actions_alone_and_leaves_the_prior():
    world = TableWorld(num_actions=6)
    legal = np.ones((8, 6), bool)
    legal[:, ::2] = False
    legal[3] = [False] * 5 + [True]
    noisy = Search(Puct(c1=50), Stop(200), noise=Dirichlet(alpha=1, fraction=1))
    result = noisy.run(torch.arange(8), world, world.evaluate, legal=legal, generator=np.random.default_rng(0))
    assert (result.visits[~legal] == 0).all()
    assert (result.policy[~legal] == 0).all()
    masked = world.logits[:8].masked_fill(~torch.from_numpy(legal), -torch.inf)
    np.testing.assert_allclose(result.prior, masked.softmax(dim=1), atol=1e-6)
    # With all of the prior drawn and little else, the visits follow the noise, and not the prior.
    free = legal.sum(axis=1) > 1
    assert np.abs(result.policy - result.prior)[free].max(axis=1).min() > 0.05
    # Below the roots every prior is the network's.
    for node in result.tree.nodes(0)[1:]:
        edges, state = result.tree.edges(0, node.index), result.tree.state(0, node.index)
        np.testing.assert_allclose(edges["prior"], world.logits[state].softmax(dim=0), atol=1e-6)


def test_noise_spares_the_children_of_roots_with_fewer_actions():
    game = Game("tic_tac_toe")
    state = game.game.new_initial_state()
    late = state.clone()
    for action in (0, 1, 3, 4, 2):
        late.apply_action(action)
    result = Search(Puct(), Stop(40), noise=Dirichlet(), players=2).run(
        game.roots([state, late]), game, game.evaluate, generator=np.random.default_rng(0)
    )
    for b in range(2):
        for node in result.tree.nodes(b):
            prior = result.tree.edges(b, node.index)["prior"]
            np.testing.assert_allclose(prior, 1 / len(prior), rtol=1e-6)


def test_uct_tries_all_and_then_trusts_the_bounds():
    bandits = Bandits(1, 4)
    result = Search(Uct(), Stop(3)).run(bandits.roots, bandits, bandits.evaluate)
    assert result.visits[0].tolist() == [1, 1, 1, 0]
    result = Search(Uct(exploration=0.7), Stop(500), bounds=(0, 1)).run(bandits.roots, bandits, bandits.evaluate)
    reward = bandits.reward[0].numpy()
    visits = np.ones(4)
    for _ in range(496):
        visits[(reward + 0.7 * np.sqrt(np.log(1 + visits.sum()) / visits)).argmax()] += 1
    # All four are proven at once: the search may stop.
    assert result.proven[0]
    assert result.simulations[0] == 4
    endless = Search(Uct(exploration=0.7), Stop(500, proven=False), bounds=(0, 1), max_depth=9)
    assert endless.run(bandits.roots, bandits, bandits.evaluate).visits[0].tolist() == visits.tolist()


@pytest.mark.parametrize("rule", [Uct(), Puct(), Puct(normalise="node", first_visit="mean"), Gumbel(scale=0)])
def test_normalised_rules_do_not_see_the_scale_of_rewards(rule):
    small, large = TableWorld(seed=4), TableWorld(seed=4)
    large.reward, large.value = 1024 * small.reward, 1024 * small.value
    one, other = (Search(rule, Stop(80)).run(torch.arange(10), w, w.evaluate) for w in (small, large))
    np.testing.assert_array_equal(one.visits, other.visits)


def test_first_visits_by_name():
    # The known action is worth 0.5 of the range, and the root's own value is above all.
    def visits(first_visit, value):
        bandits = Bandits(1, 4)
        bandits.reward[:] = torch.tensor([0.5, 0.1, 0.2, 0.9])
        bandits.logits[:] = torch.tensor([3.0, 0, 0, 0])
        bandits.value[:] = value
        rule = Puct(first_visit=first_visit, normalise="none")
        return Search(rule, Stop(6)).run(bandits.roots, bandits, bandits.evaluate).visits[0]

    # An unvisited action that inherits a high value is tried at once; a worthless one is not.
    assert (visits("zero", 5.0) > 0).sum() < 4
    assert (visits("parent", 5.0) > 0).all()
    assert (visits("mean", 5.0) == visits("mean", -5.0)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gumbel(considered=0), "at least 1 action"),
        (lambda: Puct(c1=-1), "Puct.c1 must be at least 0: got -1"),
        (lambda: Puct(first_visit="Zero"), "unknown first_visit 'Zero'"),
        (lambda: Dirichlet(alpha=0), "Dirichlet.alpha must be more than 0"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
