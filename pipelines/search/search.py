"""Batched tree search: one tree per root; every simulation steps and evaluates the leaves of all trees at once."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numba
import numpy as np
import torch

from modules.errors import UserError, check_range
from pipelines.search import compiled
from pipelines.search.contract import Dynamics, Evaluate, Expand, States
from pipelines.search.leaves import ALL_ACTIONS, Leaves, Outputs
from pipelines.search.rules import Dirichlet, Gumbel, Puct, Rule, Stop
from pipelines.search.tree import Tree

ROOTS_PER_THREAD = 128
"""Smallest number of roots per thread: on a busy machine, waiting for a thread takes longer than searching fewer."""
_NO_MASK = np.empty((0, 0), np.bool_)
_ENDLESS = 2**40
DISCOUNT = 0.997
"""Discount of MuZero, the default if neither the search, the policy nor the model sets a discount."""
_NO_CANDIDATES = np.zeros((1, 1), compiled.CANDIDATES)
_ZERO = np.zeros(1, np.float32)
_NOTHING = Outputs(np.zeros((1, 0), np.float32), ALL_ACTIONS, _ZERO, _ZERO, _ZERO)
_OUTPUTS = {
    compiled.BAD_LOGITS: "logits",
    compiled.BAD_VALUE: "value",
    compiled.BAD_REWARD: "reward",
    compiled.BAD_CONTINUATION: "continuation",
}


@dataclass
class Result:
    """Result of a search of B roots with A actions, indexed by action id."""

    visits: np.ndarray
    """(B, A) int32: visit counts of the root's actions."""
    q: np.ndarray
    """(B, A) float32: mean return for the mover at the root; NaN for unvisited actions."""
    prior: np.ndarray
    """(B, A) float32: prior probabilities of the evaluation, without noise; 0 for illegal actions."""
    policy: np.ndarray
    """(B, A) float32: policy target, the visits' shares or Gumbel's improved policy. Its probability is 0 for an action
    that is proven to be no better than another.
    """
    value: np.ndarray
    """(B,) float32: mean return of the root, including its own evaluation; exact where proven."""
    network_value: np.ndarray
    """(B,) float32: value of the root by the evaluation alone."""
    action: np.ndarray
    """(B,) int64: action to play, the most visited of those not proven worse than another, or Gumbel's winner. Of
    equally visited actions, the one with the highest Q and then the first wins.
    """
    proven: np.ndarray
    """(B,) bool: True where the value is exact."""
    simulations: np.ndarray
    """(B,): number of simulations of this run."""
    depth: np.ndarray
    """(B,): mean length of the simulations."""
    max_depth: np.ndarray
    """(B,): length of the longest simulation."""
    tree: Tree

    def draw(self, temperature: float, generator: np.random.Generator) -> np.ndarray:
        """Draw actions (B,) in proportion to policy^(1 / temperature); a temperature of 0 returns `action`."""
        if temperature == 0:
            return self.action
        with np.errstate(divide="ignore"):
            scores = np.log(self.policy) / temperature
        return (scores + generator.gumbel(size=scores.shape)).argmax(axis=1)


class Search:
    """The settings of a search, which runs from any roots in any dynamics.

    Args:
        rule: selection rule of the simulations, Uct, Puct or Gumbel; null is Puct.
        stop: stopping conditions of a root's search.
        discount: discount of the next state's value; null takes the one that the policy or the model learns by, and
            0.997 where there is neither.
        players: number of players, 1 or 2. Two players alternate: values are for the mover and change sign per move.
        noise: Dirichlet noise on the prior of the roots; null adds none.
        max_depth: largest length of a simulation, which then backs up the network's value of the node that it reached;
            null sets no limit.
        bounds: smallest and largest value of any state. The search normalises Q by the bounds and proves outcomes with
            them (score-bounded search, Cazenave and Saffidine 2010), so only deterministic exact rules may set bounds.

    Raises:
        UserError: a setting is out of range, or two settings contradict each other.
    """

    debug: ClassVar[dict[str, Any]] = {"stop": {"simulations": 4, "seconds": None}}

    def __init__(
        self,
        rule: Rule | None = None,
        stop: Stop = Stop(),
        discount: float | None = None,
        players: int = 1,
        noise: Dirichlet | None = None,
        max_depth: int | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        rule = Puct() if rule is None else rule
        if players not in (1, 2):
            raise UserError(f"players is {players}, expected 1 or 2")
        check_range("search.discount", discount, 0, 1)
        check_range("search.max_depth", max_depth, 1)
        if bounds is not None and not bounds[0] < bounds[1]:
            raise UserError(f"bounds are {list(bounds)}, expected the smallest value and then the largest")
        if isinstance(rule, Gumbel) and stop.simulations is None:
            raise UserError("Gumbel needs a fixed number of simulations: set stop.simulations")
        if isinstance(rule, Gumbel) and noise is not None:
            raise UserError("Gumbel draws its own noise: set noise to null")
        self.rule = rule
        self.stop = stop
        self.discount = discount
        self.players = players
        self.noise = noise
        self.max_depth = max_depth
        self.bounds = bounds
        self.settings = _settings(self)
        self.table = rule.table(stop.simulations)

    def __str__(self) -> str:
        """Return a short description of the search."""
        ends = [f"{self.stop.simulations} simulations"] if self.stop.simulations else []
        ends += [f"{self.stop.seconds:g} s"] if self.stop.seconds else []
        return f"search by {type(self.rule).__name__}, {' or '.join(ends)}"

    def changed(self, **changes: Any) -> Search:
        """Return the same search with some settings changed."""
        names = ("rule", "stop", "discount", "players", "noise", "max_depth", "bounds")
        return Search(**({name: getattr(self, name) for name in names} | changes))

    @property
    def effective_discount(self) -> float:
        """Return the discount that the search runs with."""
        return DISCOUNT if self.discount is None else self.discount

    def discounting_as(self, *learned: Any) -> Search:
        """Return the same search with its own discount, or else with the first discount of the given learners.

        Args:
            learned: policies and models that the search uses; each may have a `discount`.
        """
        if self.discount is not None:
            return self
        found = (getattr(part, "discount", None) for part in learned)
        return self.changed(discount=next((discount for discount in found if discount is not None), DISCOUNT))

    def greedy(self) -> Search:
        """Return the same search without noise, for evaluation."""
        rule = replace(self.rule, scale=0.0) if isinstance(self.rule, Gumbel) else self.rule
        return self.changed(rule=rule, noise=None)

    @torch.inference_mode()
    def run(
        self,
        roots: States,
        dynamics: Dynamics | None,
        evaluate: Evaluate,
        *,
        legal: np.ndarray | None = None,
        generator: np.random.Generator | None = None,
        tree: Tree | None = None,
        expand: Expand | None = None,
    ) -> Result:
        """Search from states.

        Args:
            roots: tensor (B, *state_shape), or object array (B,).
            dynamics: dynamics that step the states; None if `expand` steps them.
            evaluate: evaluator of the states.
            legal: (B, A) bool, legal actions of the roots only; None takes those of `evaluate`, or all actions.
            generator: generator of the noise.
            tree: tree to continue: `result.tree`, or `result.tree.advance(actions)` after a move. The visits stay, the
                noise is drawn anew.
            expand: one call for the step and the evaluation; None calls `dynamics` and `evaluate`.

        Raises:
            UserError: a root has no legal action, an output of the network is not finite, or the tree does not fit in
                memory.
        """
        start = time.perf_counter()
        batch = len(roots)
        leaves = Leaves(roots, dynamics, evaluate, expand)
        if tree is None:
            tree = Tree(batch)
        assert len(tree.roots) == batch, f"a tree of {len(tree.roots)} roots does not go on from {batch}"
        tree.settings = self.settings.copy()
        tree.settings["compact"] = not isinstance(roots, torch.Tensor)
        self._init_roots(tree, leaves, legal)
        clean = tree.root_edges()["prior"].copy()
        candidates = self._add_root_noise(tree, generator)
        self._simulate(tree, leaves, candidates, start)
        if self.noise is not None:
            np.copyto(tree.root_edges()["prior"], clean, where=tree.root_mask())
        return _result(tree, candidates, 0 if legal is None else legal.shape[1])

    def _init_roots(self, tree: Tree, leaves: Leaves, legal: np.ndarray | None) -> None:
        """Allocate memory, evaluate the roots that have no nodes, and reset the counters of all roots for a run."""
        batch = len(tree.roots)
        if legal is not None:
            legal = np.ascontiguousarray(legal, np.bool_)
            if legal.ndim != 2 or len(legal) != batch:
                raise UserError(f"legal has the shape {legal.shape}, expected ({batch} roots, actions)")
        new = not tree.roots["nodes"].all()
        if not new and legal is not None:
            _check_legal(legal, int(tree.root_edges()["action"][tree.root_mask()].max(initial=-1)))
            compiled.drop(legal, tree.settings, *tree.arrays())
        outputs = _NOTHING
        if new:
            outputs = leaves.evaluate_roots()
            tree.width = max(tree.width, outputs.logits.shape[1])
            tree.dense = not len(outputs.actions)
            if legal is not None:
                _check_legal(legal, int(outputs.actions.max()) if len(outputs.actions) else tree.width - 1)
                compiled.drop(legal, tree.settings, *tree.arrays())
        simulations = self.stop.simulations or 64
        tree.slots = max(tree.slots, 1)
        # A node with listed legal actions has fewer edges than the width: the pool starts small and doubles.
        full_nodes = simulations + 1 if tree.dense else min(simulations + 1, 8)
        edges = int(tree.roots["edges"].max()) + tree.width * full_nodes
        tree.reserve(tree.slots + simulations, edges, leaves.roots)
        tree.states[0] = leaves.roots  # type: ignore[assignment,call-overload]
        mask = _NO_MASK if legal is None else legal
        init_roots = compiled.entry(compiled.init_roots)
        wrong = init_roots(outputs.logits, outputs.actions, outputs.value, mask, tree.settings, *tree.arrays())
        if wrong >= 0:
            raise _error(tree, wrong, 0)

    def _add_root_noise(self, tree: Tree, generator: np.random.Generator | None) -> np.ndarray:
        """Add noise to the priors of the roots' edges, and return Gumbel's candidates (B, edges)."""
        rule, noise = self.rule, self.noise
        if noise is not None:
            edges, there = tree.root_edges(), tree.root_mask()
            generator = generator or np.random.default_rng()
            drawn = np.where(there, generator.standard_gamma(noise.alpha, there.shape), 0)
            drawn /= np.maximum(drawn.sum(axis=1, keepdims=True), 1e-30)
            mixed = (1 - noise.fraction) * edges["prior"] + noise.fraction * drawn
            # The edges of a root's children follow its own edges in the pool.
            np.copyto(edges["prior"], mixed, where=there, casting="same_kind")
        if not isinstance(rule, Gumbel):
            edges = tree.root_edges()
            edges["score"] = edges["prior"] / (1 + edges["visits"])
            return _NO_CANDIDATES
        there = tree.root_mask()
        candidates = np.zeros(there.shape, compiled.CANDIDATES)
        if rule.scale:
            generator = generator or np.random.default_rng()
            candidates["gumbel"] = rule.scale * generator.gumbel(size=there.shape)
        candidates["before"] = np.where(there, tree.root_edges()["visits"], 0)
        tree.roots["considered"] = np.minimum(there.sum(axis=1), len(self.table) - 1)
        return candidates

    def _simulate(self, tree: Tree, leaves: Leaves, candidates: np.ndarray, start: float) -> None:
        """Run the simulations."""
        threads = threads_for(len(tree.roots))
        if threads > 1:
            kept = torch.get_num_threads()
            numba.set_num_threads(threads)
            torch.set_num_threads(kept)  # numba shares OpenMP with torch: another count would change torch's sum order
        simulate = compiled.entry(compiled.simulate_parallel if threads > 1 else compiled.simulate)
        outputs = _NOTHING
        pending = False
        calls, edges = 0, int(tree.roots["edges"].max())
        arrays = (tree.settings, *tree.arrays(), self.table, candidates, leaves.indices)
        seconds, decided = self.stop.seconds, self.stop.decided
        while True:
            edges += outputs.logits.shape[1]
            if edges > tree.edge_pool.shape[1]:
                edges = int(tree.roots["edges"].max()) + outputs.logits.shape[1]
                if edges > tree.edge_pool.shape[1]:
                    tree.reserve(0, max(edges, 2 * tree.edge_pool.shape[1]), leaves.roots)
                    arrays = (tree.settings, *tree.arrays(), self.table, candidates, leaves.indices)
            waiting, erred, going = simulate(tree.slots, *outputs, *arrays)
            tree.slots += pending
            pending = False
            if erred >= 0:
                raise _error(tree, erred, calls)
            if not going:
                return
            if seconds is not None:
                elapsed = time.perf_counter() - start
                if elapsed >= seconds:
                    tree.roots["waiting"] = 0
                    return
                if decided:
                    done = int(tree.roots["simulations"].max())
                    tree.settings["remaining"] = int(done * (seconds - elapsed) / elapsed) + 1
            if waiting:
                if tree.slots == tree.node_pool.shape[1]:
                    tree.reserve(2 * tree.slots, 0, leaves.roots)
                    arrays = (tree.settings, *tree.arrays(), self.table, candidates, leaves.indices)
                outputs = leaves.ask(tree, waiting)
                pending = True
                calls += 1


def threads_for(batch: int) -> int:
    """Return the number of threads to use for a batch of roots."""
    return max(1, min(batch // ROOTS_PER_THREAD, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]


def _settings(search: Search) -> np.ndarray:
    """Return the record (1,) of settings that the compiled loops read."""
    settings = np.zeros(1, compiled.SETTINGS)
    record = settings[0]
    rule, stop = search.rule, search.stop
    for name, value in rule.settings().items():
        record[name] = value
    record["discount"] = search.effective_discount
    record["sign"] = 1 if search.players == 1 else -1
    record["max_depth"] = search.max_depth or -1
    if search.bounds is not None:
        record["bounded"], record["prove"] = True, search.max_depth is None
        record["low"], record["high"] = search.bounds
    record["simulations"] = stop.simulations or _ENDLESS
    record["remaining"] = _ENDLESS
    record["decided"], record["converged"], record["stop_proven"] = stop.decided, stop.converged or 0, stop.proven
    return settings


def _check_legal(legal: np.ndarray, largest: int) -> None:
    if largest >= legal.shape[1]:
        raise UserError(f"legal has {legal.shape[1]} actions, but the evaluation names action {largest}")


def _error(tree: Tree, root: int, simulation: int) -> UserError:
    """Return the error that a root's code `error` stands for."""
    error = tree.roots[root]["error"]
    if error == compiled.NO_ACTIONS:
        return UserError(f"root {root} has no legal action: search from positions that are not over")
    where = f"simulation {simulation}" if simulation else "the evaluation of the roots"
    return UserError(f"the network's {_OUTPUTS[error]} of root {root} in {where} is NaN or infinite: did it diverge?")


def _result(tree: Tree, candidates: np.ndarray, num_actions: int) -> Result:
    """Read the result off the trees."""
    batch = len(tree.roots)
    roots, root_nodes = tree.roots, tree.node_pool[:, 0]
    if not num_actions:
        num_actions = tree.width
        if not tree.dense:
            num_actions = int(tree.root_edges()["action"][tree.root_mask()].max()) + 1
    shape = (batch, num_actions)
    visits, q = np.zeros(shape, np.int32), np.full(shape, np.nan, np.float32)
    prior, policy = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    value, action = np.zeros(batch, np.float32), np.zeros(batch, np.int64)
    compiled.summarise(tree.settings, *tree.arrays(), candidates, visits, q, prior, policy, value, action)
    return Result(
        visits,
        q,
        prior,
        policy,
        value,
        root_nodes["network_value"].copy(),
        action,
        (roots["lower"] == roots["upper"]) & bool(tree.settings[0]["prove"]),
        roots["simulations"].copy(),
        roots["depths"] / np.maximum(roots["simulations"], 1),
        roots["deepest"].copy(),
        tree,
    )
