"""Compiled loops of the search over a batch of trees.

A tree has three kinds of records: nodes, edges and one record per root. The legal actions of a node are consecutive
edges in the pool of its tree. A record keeps values together that a descent reads together. Records also need few
arguments: a call with two dozen columns costs microseconds, as much as the search itself at one root.

All compiled code is in this file, because numba's disk cache notices a changed file only for the functions in it, not
for their callers in other files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import boolean, float32, float64, from_dtype, int64, njit, prange

UNVISITED, TERMINAL = -1, -2
"""Codes in an edge's `child` that stand for no node."""
UCT, PUCT, GUMBEL = 0, 1, 2
"""Selection rules."""
ZERO, PARENT, MEAN = 0, 1, 2
"""Choices for PUCT's Q of an unvisited edge."""
TREE, NODE, RAW = 0, 1, 2
"""Scopes of the normalisation of Q; RAW does not normalise."""
FINE, BAD_LOGITS, BAD_VALUE, BAD_REWARD, BAD_CONTINUATION, NO_ACTIONS = 0, 1, 2, 3, 4, 5
"""Error codes of a root, most of them for outputs of the network."""
WINDOW = 32
"""Number of simulations over which a converged root value must not move."""
PATIENCE = 256
"""Largest number of simulations per root and call that end at a known value and need no model."""

EDGES = np.dtype(
    [
        ("action", np.int32),
        ("child", np.int32),
        ("visits", np.int32),
        ("prior", np.float32),  # probability; under Gumbel its logarithm
        ("value", np.float32),  # mean return for the mover at the edge's node
        ("reward", np.float32),
        ("discount", np.float32),  # negative where the other player moves next
        ("score", np.float32),  # prior / (1 + visits); under Gumbel scratch space
    ]
)
NODES = np.dtype(
    [
        ("parent", np.int32),
        ("edge", np.int32),  # edge of the parent that leads to this node
        ("start", np.int32),
        ("count", np.int32),
        ("visits", np.int32),  # including the node's own evaluation
        ("depth", np.int32),
        ("value", np.float32),  # mean return, including the node's own evaluation
        ("network_value", np.float32),
    ]
)
PROOFS = np.dtype([("lower", np.float32), ("upper", np.float32)])
ROOTS = np.dtype(
    [
        ("nodes", np.int32),
        ("edges", np.int32),  # number of edges in use in the pool
        ("simulations", np.int32),  # number of simulations of this run
        ("waiting", np.int32),  # 1 while a leaf waits for the model
        ("leaf", np.int32),  # parent node of the waiting leaf
        ("leaf_edge", np.int32),  # edge from the parent to the waiting leaf
        ("row", np.int32),  # row of the leaf in the model's batch
        ("stopped", np.int32),
        ("error", np.int32),
        ("considered", np.int32),  # number of actions that Gumbel considers
        ("depths", np.int64),  # sum of the depths of all simulations
        ("deepest", np.int32),
        ("low", np.float32),  # smallest Q of the tree
        ("high", np.float32),  # largest Q of the tree
        ("window_low", np.float32),  # smallest value of the root in the current WINDOW
        ("window_high", np.float32),  # largest value of the root in the current WINDOW
        ("lower", np.float32),  # lower bound of the root's exact value
        ("upper", np.float32),  # upper bound of the root's exact value
    ]
)
CANDIDATES = np.dtype([("gumbel", np.float32), ("before", np.int32)])
"""Record of a root's edge under Gumbel: noise, and visits before this run."""
SETTINGS = np.dtype(
    [
        ("rule", np.int32),
        ("exploration", np.float64),
        ("c1", np.float64),
        ("c2", np.float64),
        ("first_visit", np.int32),
        ("normalise", np.int32),
        ("epsilon", np.float64),
        ("c_visit", np.float64),
        ("c_scale", np.float64),
        ("discount", np.float64),
        ("sign", np.float64),  # -1 where players alternate
        ("max_depth", np.int32),
        ("low", np.float64),  # known lower bound of values
        ("high", np.float64),  # known upper bound of values
        ("bounded", np.int32),
        ("prove", np.int32),
        ("simulations", np.int64),
        ("remaining", np.int64),  # number of simulations that the time limit still allows
        ("decided", np.int32),
        ("converged", np.float64),
        ("stop_proven", np.int32),
        ("compact", np.int32),  # 1 if the model's batch holds only waiting roots
    ]
)

ALL_LEGAL = np.empty((0, 0), np.bool_)
compiled = njit(cache=True, error_model="numpy")
inlined = njit(cache=True, error_model="numpy", forceinline=True)
"""Decorator of functions on every level of a descent: other calls count references to arrays by atomic operations."""


# Selection rules: each selects an edge of one node of one tree.


@inlined
def best_lower(b, node, proofs):
    """Return the lower bound of a node's exact value for its mover: the largest of its edges'."""
    best = -np.inf
    for e in range(node.start, node.start + node.count):
        best = max(best, proofs[b, e].lower)
    return best


@inlined
def dominated(proof, lower):
    """Return whether an edge is proven to be no better than another edge with the given lower bound."""
    return proof.upper < lower or (proof.upper == lower and proof.lower < lower)


@inlined
def scaling(b, node, settings, root, edges):
    """Return (low, scale): Q is normalised to (Q - low) * scale."""
    low, high = np.float64(root.low), np.float64(root.high)
    if settings.normalise == RAW:
        return 0.0, 1.0
    if settings.normalise == NODE and not settings.bounded:
        low = high = np.float64(node.value)
        for e in range(node.start, node.start + node.count):
            if edges[b, e].visits > 0:
                low, high = min(low, np.float64(edges[b, e].value)), max(high, np.float64(edges[b, e].value))
    if low > high:
        return 0.0, 1.0
    return low, 1.0 / max(high - low, settings.epsilon)


@inlined
def uct(b, node, settings, root, edges, proofs):
    """Select the edge with the largest Q + c sqrt(ln N / n), unvisited edges first (Kocsis and Szepesvari 2006)."""
    lower = best_lower(b, node, proofs) if settings.prove else 0.0
    low, scale = scaling(b, node, settings, root, edges)
    log_visits = math.log(node.visits)
    choice, best = -1, -np.inf
    for e in range(node.start, node.start + node.count):
        if settings.prove and dominated(proofs[b, e], lower):
            continue
        edge = edges[b, e]
        if edge.visits == 0:
            return e
        score = (edge.value - low) * scale + settings.exploration * math.sqrt(log_visits / edge.visits)
        if score > best:
            choice, best = e, score
    return choice


@inlined
def sibling_mean(b, node, estimate, edges):
    """Return EfficientZero's Q of an unvisited edge: the mean of the visited siblings' Q and the parent's estimate."""
    total, visited = 0.0, 0
    for e in range(node.start, node.start + node.count):
        if edges[b, e].visits > 0:
            total += edges[b, e].value
            visited += 1
    if node.parent < 0 and visited > 0:
        return total / visited
    return (estimate + total) / (1 + visited)


@inlined
def confidence(visits, settings):
    """Return the factor of P / (1 + n) at a node with N visits."""
    n = np.float64(visits)
    return math.sqrt(n) * (settings.c1 + math.log((n + settings.c2 + 1) / settings.c2))


@inlined
def unvisited_q(node, low, scale, estimate, settings):
    """Return the normalised Q of an unvisited edge."""
    q = 0.0
    if settings.first_visit == PARENT:
        q = (node.value - low) * scale
    elif settings.first_visit == MEAN:
        q = (estimate - low) * scale
    return q if settings.normalise == RAW else min(max(q, 0.0), 1.0)


@inlined
def puct(b, node, low, scale, unvisited, factor, edges):
    """Select the edge with the largest Q + P sqrt(N) / (1 + n) (c1 + log((N + c2 + 1) / c2)) (MuZero, appendix B).

    N includes the node's own evaluation, so that a new node selects its highest prior. The factor holds the terms that
    depend only on N; the score of an edge is P / (1 + n).
    """
    choice, best = -1, -np.inf
    # Selects instead of branches: the CPU cannot predict which edge is better, and a wrong guess costs more.
    for e in range(node.start, node.start + node.count):
        edge = edges[b, e]
        q = (edge.value - low) * scale
        q = q if edge.visits > 0 else unvisited
        score = q + factor * edge.score
        choice = e if score > best else choice
        best = score if score > best else best
    return choice


@inlined
def puct_unproven(b, node, low, scale, unvisited, factor, edges, proofs):
    """Select an edge by PUCT among the edges that are not proven worse than another."""
    choice, best = -1, -np.inf
    lower = best_lower(b, node, proofs)
    for e in range(node.start, node.start + node.count):
        edge = edges[b, e]
        q = (edge.value - low) * scale if edge.visits > 0 else unvisited
        score = q + factor * edge.score
        if score > best and not dominated(proofs[b, e], lower):
            choice, best = e, score
    return choice


@inlined
def improve(b, node, settings, root, edges):
    """Write logits + sigma(completed Q) to the edges' scores; return the largest score (Gumbel MuZero, section 4)."""
    stop = node.start + node.count
    total, most, mass, weighted = 0, 0, 0.0, 0.0
    for e in range(node.start, stop):
        edge = edges[b, e]
        if edge.visits > 0:
            total += edge.visits
            most = max(most, edge.visits)
            probability = math.exp(edge.prior) + 1e-30
            mass += probability
            weighted += probability * edge.value
    mixed = np.float64(node.network_value)  # v_mix, appendix D
    if total > 0:
        mixed = (mixed + total * weighted / mass) / (1 + total)
    low, high = settings.low, settings.high
    if not settings.bounded:
        low, high = np.inf, -np.inf
        for e in range(node.start, stop):
            q = np.float64(edges[b, e].value) if edges[b, e].visits > 0 else mixed
            low, high = min(low, q), max(high, q)
    factor = (settings.c_visit + most) * settings.c_scale / max(high - low, settings.epsilon)
    best = -np.inf
    for e in range(node.start, stop):
        q = np.float64(edges[b, e].value) if edges[b, e].visits > 0 else mixed
        edges[b, e].score = edges[b, e].prior + factor * (q - low)
        best = max(best, np.float64(edges[b, e].score))
    return best


@inlined
def gumbel_root(b, node, settings, root, edges, proofs, candidates, wanted):
    """Select by sequential halving: the best g + logits + sigma(Q) among edges with the wanted number of visits."""
    lower = best_lower(b, node, proofs) if settings.prove else 0.0
    improve(b, node, settings, root, edges)
    choice, best, other, other_best = -1, -np.inf, -1, -np.inf
    for i in range(node.count):
        e = node.start + i
        if settings.prove and dominated(proofs[b, e], lower):
            continue
        score = max(np.float64(candidates[b, i].gumbel) + edges[b, e].score, -1e30)
        if edges[b, e].visits - candidates[b, i].before == wanted:
            if score > best:
                choice, best = e, score
        elif score > other_best:
            other, other_best = e, score
    # Proofs can rule out all edges with the wanted number of visits: then the best of the others.
    return choice if choice >= 0 else other


@inlined
def gumbel_interior(b, node, settings, root, edges, proofs):
    """Select the edge with the largest improved policy minus share of visits: argmax pi' - n / (1 + sum n)."""
    lower = best_lower(b, node, proofs) if settings.prove else 0.0
    largest = improve(b, node, settings, root, edges)
    total = 0.0
    for e in range(node.start, node.start + node.count):
        edges[b, e].score = math.exp(edges[b, e].score - largest)
        total += edges[b, e].score
    choice, best = -1, -np.inf
    for e in range(node.start, node.start + node.count):
        if settings.prove and dominated(proofs[b, e], lower):
            continue
        score = edges[b, e].score / total - edges[b, e].visits / np.float64(node.visits)
        if score > best:
            choice, best = e, score
    return choice


# One simulation: descend, call the model, expand, back up.


@inlined
def descend(b, settings, roots, nodes, edges, proofs, table, candidates):
    """Return (node, edge) where a simulation ends: at an unvisited, terminal, proven or deepest allowed child."""
    root = roots[b]
    index, depth, estimate = 0, 0, 0.0
    while True:
        node = nodes[b, index]
        if settings.rule == PUCT:
            if settings.first_visit == MEAN:
                estimate = sibling_mean(b, node, settings.sign * estimate, edges)
            visits = node.visits
            factor = table[0, visits] if visits < table.shape[1] else confidence(visits, settings)
            low, scale = scaling(b, node, settings, root, edges)
            unvisited = unvisited_q(node, low, scale, estimate, settings)
            if settings.prove:
                choice = puct_unproven(b, node, low, scale, unvisited, factor, edges, proofs)
            else:
                choice = puct(b, node, low, scale, unvisited, factor, edges)
        elif settings.rule == UCT:
            choice = uct(b, node, settings, root, edges, proofs)
        elif index == 0:
            wanted = table[root.considered, root.simulations]
            choice = gumbel_root(b, node, settings, root, edges, proofs, candidates, wanted)
        else:
            choice = gumbel_interior(b, node, settings, root, edges, proofs)
        depth += 1
        child = edges[b, choice].child
        if (
            child < 0
            or depth == settings.max_depth
            or nodes[b, child].count == 0
            or (settings.prove and proofs[b, choice].lower == proofs[b, choice].upper)
        ):
            root.depths += depth
            root.deepest = max(root.deepest, depth)
            return index, choice
        index = child


@inlined
def bounds_of(b, node, proofs):
    """Return the bounds of a node's exact value: the largest of its edges'."""
    lower, upper = -np.inf, -np.inf
    for e in range(node.start, node.start + node.count):
        lower = max(lower, np.float64(proofs[b, e].lower))
        upper = max(upper, np.float64(proofs[b, e].upper))
    return lower, upper


@inlined
def bound_edge(b, e, lower, upper, settings, edges, proofs):
    """Tighten the bounds of an edge by the bounds of its child, and return whether they changed."""
    edge, proof = edges[b, e], proofs[b, e]
    one, other = edge.reward + edge.discount * lower, edge.reward + edge.discount * upper
    low, high = np.float32(min(one, other)), np.float32(max(one, other))
    news = False
    if low > proof.lower:
        proof.lower = min(low, proof.upper)
        news = True
    if high < proof.upper:
        proof.upper = max(high, proof.lower)
        news = True
    return news


@inlined
def backup(b, index, e, value, news, settings, roots, nodes, edges, proofs):
    """Back up the value of the edge's child to the root, and changed bounds too if `news` is True.

    The bounds of a node are the largest of its edges' (Cazenave and Saffidine 2010). A proven value replaces the mean.
    """
    root = roots[b]
    while index >= 0:
        edge, node = edges[b, e], nodes[b, index]
        value = edge.reward + edge.discount * value
        edge.visits += 1
        edge.value += (value - edge.value) / edge.visits
        if settings.rule == PUCT:
            edge.score = edge.prior / np.float32(1 + edge.visits)
        if settings.prove:
            proof = proofs[b, e]
            if proof.lower == proof.upper:
                value = np.float64(proof.lower)
                edge.value = proof.lower
        root.low, root.high = min(root.low, edge.value), max(root.high, edge.value)
        node.visits += 1
        node.value += (value - node.value) / node.visits
        e = node.edge
        if news:
            lower, upper = bounds_of(b, node, proofs)
            if lower == upper:
                value = lower
            if index == 0:
                root.lower, root.upper = lower, upper
            else:
                news = bound_edge(b, e, lower, upper, settings, edges, proofs)
        index = node.parent


@inlined
def add_edges(b, index, row, logits, actions, legal, settings, roots, nodes, edges, proofs):
    """Add an edge per legal action to a node, and return an error code."""
    root, node = roots[b], nodes[b, index]
    start = root.edges
    count, largest = 0, -np.inf
    for k in range(logits.shape[1]):
        logit = np.float64(logits[row, k])
        action = k if actions.shape[0] == 0 else actions[row, k]
        if action < 0 or (legal.shape[0] > 0 and not legal[b, action]):
            continue
        if logit != logit:
            return BAD_LOGITS
        edge = edges[b, start + count]
        edge.action, edge.child, edge.visits = action, UNVISITED, 0
        edge.prior, edge.value, edge.reward, edge.discount = logit, 0.0, 0.0, 0.0
        if settings.prove:
            proofs[b, start + count].lower, proofs[b, start + count].upper = settings.low, settings.high
        largest = max(largest, logit)
        count += 1
    node.start, node.count = start, count
    if count > 0 and not math.isfinite(largest):
        return BAD_LOGITS
    total = np.float32(0)
    for e in range(start, start + count):
        edges[b, e].score = math.exp(edges[b, e].prior - np.float32(largest))
        total += edges[b, e].score
    if settings.rule == GUMBEL:
        logarithm = math.log(total)
        for e in range(start, start + count):
            # Subtract in this order: next to logits of a million, float32 would lose the logarithm.
            edges[b, e].prior = np.float64(edges[b, e].prior) - largest - logarithm
    else:
        inverse = np.float32(1) / total
        for e in range(start, start + count):
            edges[b, e].score *= inverse
            edges[b, e].prior = edges[b, e].score
    root.edges = start + count
    return FINE


@inlined
def expand(b, slot, logits, actions, value, reward, continuation, settings, roots, nodes, edges, proofs):
    """Add the waiting leaf to its tree with the model's outputs, back its value up, and return an error code."""
    root = roots[b]
    row, parent, e = root.row, root.leaf, root.leaf_edge
    if not math.isfinite(reward[row]):
        return BAD_REWARD
    if not math.isfinite(continuation[row]):
        return BAD_CONTINUATION
    edge = edges[b, e]
    edge.reward = reward[row]
    edge.discount = settings.discount * settings.sign * continuation[row]
    if continuation[row] == 0:
        edge.child = TERMINAL
        news = settings.prove and bound_edge(b, e, 0.0, 0.0, settings, edges, proofs)
        backup(b, parent, e, 0.0, news, settings, roots, nodes, edges, proofs)
        return FINE
    if not math.isfinite(value[row]):
        return BAD_VALUE
    node = nodes[b, slot]
    error = add_edges(b, slot, row, logits, actions, ALL_LEGAL, settings, roots, nodes, edges, proofs)
    if error:
        return error
    node.parent, node.edge, node.depth = parent, e, nodes[b, parent].depth + 1
    node.visits, node.value, node.network_value = 1, value[row], value[row]
    root.nodes += 1
    edge.child = slot
    news = settings.prove and bound_edge(b, e, settings.low, settings.high, settings, edges, proofs)
    backup(b, parent, e, np.float64(value[row]), news, settings, roots, nodes, edges, proofs)
    return FINE


@inlined
def has_stopped(b, settings, roots, nodes, edges):
    """Return whether a stopping condition holds for a root."""
    root, node = roots[b], nodes[b, 0]
    if root.simulations >= settings.simulations:
        return True
    if settings.stop_proven and settings.prove and root.lower == root.upper:
        return True
    if settings.decided:
        first, second = 0, -1
        for e in range(node.start, node.start + node.count):
            visits = edges[b, e].visits
            if visits > first:
                first, second = visits, first
            elif visits > second:
                second = visits
        left = min(settings.simulations - root.simulations, settings.remaining)
        if node.count == 1 or first - second > left:
            return True
    if settings.converged > 0 and root.simulations > 0:
        root.window_low = min(root.window_low, node.value)
        root.window_high = max(root.window_high, node.value)
        if root.simulations % WINDOW == 0:
            if root.window_high - root.window_low < settings.converged:
                return True
            root.window_low = root.window_high = node.value
    return False


@inlined
def advance_root(
    b, slot, logits, actions, value, reward, continuation, settings, roots, nodes, edges, proofs, table, candidates
):
    """Finish a root's simulation with the model's outputs, and simulate until the root needs the model or stops."""
    root = roots[b]
    if root.waiting:
        root.waiting = 0
        root.error = expand(
            b, slot, logits, actions, value, reward, continuation, settings, roots, nodes, edges, proofs
        )
        root.simulations += 1
        if root.error:
            return
    for _ in range(PATIENCE):
        if root.stopped or has_stopped(b, settings, roots, nodes, edges):
            root.stopped = 1
            return
        index, e = descend(b, settings, roots, nodes, edges, proofs, table, candidates)
        child = edges[b, e].child
        if child == UNVISITED:
            root.waiting, root.leaf, root.leaf_edge = 1, index, e
            return
        known = np.float64(nodes[b, child].network_value) if child >= 0 else 0.0
        backup(b, index, e, known, False, settings, roots, nodes, edges, proofs)
        root.simulations += 1


@inlined
def gather(settings, roots, edges, leaves):
    """Write the flat state indices and the actions of the leaves that wait for the model.

    Returns:
        The number of waiting leaves, the first root with an error or -1, and the number of roots that have not stopped.
    """
    waiting, erred, going = 0, -1, 0
    for b in range(len(roots)):
        root = roots[b]
        if root.error and erred < 0:
            erred = b
        going += not root.stopped
        if root.waiting:
            root.row = waiting if settings.compact else b
            leaves[0, root.row] = root.leaf * len(roots) + b
            leaves[1, root.row] = edges[b, root.leaf_edge].action
            waiting += 1
        elif not settings.compact:
            # The batch includes an idle row, so that its shape is constant.
            leaves[0, b], leaves[1, b] = b, edges[b, 0].action
    return waiting, erred, going


@compiled
def simulate(
    slot, logits, actions, value, reward, continuation, settings, roots, nodes, edges, proofs, table, candidates, leaves
):
    """Finish every root's simulation, begin the next ones, and return the numbers of `gather`.

    Args:
        slot: node index at which the states of the last leaves are stored.
        logits: (rows, K) float32, log prior of the last leaves; value, reward and continuation are (rows,) float32.
        actions: (rows, K) int64, legal actions padded with -1; (0, 0) stands for all actions.
        leaves: (2, B) int64, output: indices into the flat states, and actions.
    """
    for b in range(len(roots)):
        advance_root(
            b, slot, logits, actions, value, reward, continuation,
            settings[0], roots, nodes, edges, proofs, table, candidates,
        )  # fmt: skip
    return gather(settings[0], roots, edges, leaves)


@njit(cache=True, error_model="numpy", parallel=True)
def simulate_parallel(
    slot, logits, actions, value, reward, continuation, settings, roots, nodes, edges, proofs, table, candidates, leaves
):
    """Run `simulate` with the roots on several threads.

    The call holds the interpreter's lock, so that two Python threads never start numba's thread pool at the same time.
    Numba's simplest threading layer, workqueue, would crash then.
    """
    for b in prange(len(roots)):
        advance_root(
            b, slot, logits, actions, value, reward, continuation,
            settings[0], roots, nodes, edges, proofs, table, candidates,
        )  # fmt: skip
    return gather(settings[0], roots, edges, leaves)


# Functions that run before and after the simulations.


@compiled
def init_roots(logits, actions, value, legal, settings, roots, nodes, edges, proofs):
    """Create the root nodes of trees without nodes, and reset all roots for a new run.

    Args:
        logits: (B, K) float32, log prior of the roots; actions are (B, K) int64 or (0, 0), value is (B,) float32.
        legal: (B, A) bool, legal actions; (0, 0) allows all actions that `actions` lists.

    Returns:
        The first root with an error, or -1.
    """
    options = settings[0]
    for b in range(len(roots)):
        root, node = roots[b], nodes[b, 0]
        if root.nodes == 0:
            root.edges = 0
            if not math.isfinite(value[b]):
                root.error = BAD_VALUE
                return b
            root.error = add_edges(b, 0, b, logits, actions, legal, options, roots, nodes, edges, proofs)
            node.parent, node.edge, node.depth = -1, -1, 0
            node.visits, node.value, node.network_value = 1, value[b], value[b]
            root.nodes = 1
            root.low, root.high = np.inf, -np.inf
            root.lower, root.upper = options.low, options.high
            if options.bounded:
                root.low, root.high = options.low, options.high
        else:
            root.error = FINE
        if root.error == FINE and node.count == 0:
            root.error = NO_ACTIONS
        if root.error:
            return b
        root.simulations = root.waiting = root.stopped = root.deepest = root.depths = 0
        root.row = b
        root.window_low = root.window_high = node.value
    return -1


@compiled
def drop(legal, settings, roots, nodes, edges, proofs):
    """Remove illegal edges (legal: (B, A) bool) and the visits of their subtrees from roots that have nodes."""
    for b in range(len(roots)):
        node = nodes[b, 0]
        if roots[b].nodes == 0 or legal.shape[0] == 0:
            continue
        kept, visits, total, mass = 0, 1, np.float64(node.network_value), 0.0
        gumbel = settings[0].rule == GUMBEL
        for e in range(node.start, node.start + node.count):
            edge = edges[b, e]
            if not legal[b, edge.action]:
                continue
            to = node.start + kept
            edges[b, to] = edge
            if settings[0].prove:
                proofs[b, to] = proofs[b, e]
            if edge.child >= 0:
                nodes[b, edge.child].edge = to
            visits += edge.visits
            total += edge.visits * np.float64(edge.value)
            mass += math.exp(edge.prior) if gumbel else edge.prior
            kept += 1
        if kept < node.count:
            node.count, node.visits, node.value = kept, visits, total / visits
            for e in range(node.start, node.start + kept):
                if gumbel:
                    edges[b, e].prior -= math.log(mass)
                else:
                    edges[b, e].prior = edges[b, e].prior / mass if mass > 0 else 1 / kept
            if settings[0].prove:
                roots[b].lower, roots[b].upper = bounds_of(b, node, proofs)


@compiled
def keep(actions, settings, roots, nodes, edges, proofs, new_roots, new_nodes, new_edges, new_proofs, origin):
    """Copy the subtrees under the roots' actions (B,) to the front of new trees, breadth first.

    Args:
        origin: (nodes, B) int64, output: index in the old tree of every node of the new tree.

    Returns:
        The largest number of nodes kept in a tree.
    """
    options = settings[0]
    most = 0
    for b in range(len(roots)):
        root, new_root = roots[b], new_roots[b]
        new_root.nodes = new_root.edges = 0
        first = UNVISITED
        if root.nodes > 0:
            for e in range(nodes[b, 0].start, nodes[b, 0].start + nodes[b, 0].count):
                if edges[b, e].action == actions[b]:
                    first = edges[b, e].child
        if first < 0:
            continue
        origin[0, b] = first
        new_nodes[b, 0].parent = new_nodes[b, 0].edge = -1
        above = nodes[b, first].depth
        low, high = np.inf, -np.inf
        count, used, i = 1, 0, 0
        while i < count:
            node, new_node = nodes[b, origin[i, b]], new_nodes[b, i]
            new_node.start, new_node.count, new_node.depth = used, node.count, node.depth - above
            new_node.visits, new_node.value, new_node.network_value = node.visits, node.value, node.network_value
            for e in range(node.start, node.start + node.count):
                new_edges[b, used] = edges[b, e]
                if options.prove:
                    new_proofs[b, used] = proofs[b, e]
                if edges[b, e].visits > 0:
                    low, high = min(low, edges[b, e].value), max(high, edges[b, e].value)
                if edges[b, e].child >= 0:
                    origin[count, b] = edges[b, e].child
                    new_edges[b, used].child = count
                    new_nodes[b, count].parent, new_nodes[b, count].edge = i, used
                    count += 1
                used += 1
            i += 1
        new_root.nodes, new_root.edges = count, used
        new_root.low, new_root.high = low, high
        if options.bounded:
            new_root.low, new_root.high = options.low, options.high
        new_root.lower, new_root.upper = options.low, options.high
        if options.prove:
            lower, upper = -np.inf, -np.inf
            for e in range(new_nodes[b, 0].count):
                lower, upper = max(lower, new_proofs[b, e].lower), max(upper, new_proofs[b, e].upper)
            new_root.lower, new_root.upper = lower, upper
        most = max(most, count)
    return most


@compiled
def summarise(settings, roots, nodes, edges, proofs, candidates, visits, q, prior, policy, value, action):
    """Write the results per action (B, A), the value (B,) and the action to play (B,) of every root.

    The action is the most visited of those not proven worse than another; the highest Q breaks ties. Under Gumbel it is
    the action with the highest g + logits + sigma(Q) among the most visited.
    """
    options = settings[0]
    gumbel = options.rule == GUMBEL
    for b in range(len(roots)):
        node = nodes[b, 0]
        start, stop = node.start, node.start + node.count
        lower = best_lower(b, node, proofs) if options.prove else 0.0
        largest = improve(b, node, options, roots[b], edges) if gumbel else 0.0
        total, mass, most, best, choice = 0, 0.0, np.int64(-1), np.float64(-np.inf), start
        for e in range(start, stop):
            edge, i = edges[b, e], e - start
            a = edge.action
            visits[b, a] = edge.visits
            prior[b, a] = math.exp(edge.prior) if gumbel else edge.prior
            if edge.visits > 0:
                q[b, a] = edge.value
            if options.prove and dominated(proofs[b, e], lower):
                continue
            count, score = np.int64(edge.visits), np.float64(edge.value)
            weight = float(edge.visits)
            if gumbel:
                weight = math.exp(edge.score - largest)
                count -= candidates[b, i].before
                score = np.float64(candidates[b, i].gumbel) + edge.score
            elif edge.visits == 0:
                score = np.float64(edge.prior)
            policy[b, a] = weight
            total += edge.visits
            mass += weight
            if count > most or (count == most and score > best):
                most, best, choice = count, score, e
        for e in range(start, stop):
            a = edges[b, e].action
            policy[b, a] = policy[b, a] / mass if mass > 0 else prior[b, a]
        action[b] = edges[b, choice].action
        value[b] = node.value
        if options.prove and roots[b].lower == roots[b].upper:
            value[b] = roots[b].lower


# Types.

_OUTPUTS = (float32[:, :], int64[:, :], float32[:])
_TREES = (
    *(from_dtype(kind)[::1] for kind in (SETTINGS, ROOTS)),
    *(from_dtype(kind)[:, ::1] for kind in (NODES, EDGES, PROOFS)),
)
_REST = (float64[:, ::1], from_dtype(CANDIDATES)[:, ::1], int64[:, ::1])
_SIMULATE = (int64, *_OUTPUTS, float32[:], float32[:], *_TREES, *_REST)
_TYPES = {simulate: _SIMULATE, simulate_parallel: _SIMULATE, init_roots: (*_OUTPUTS, boolean[:, ::1], *_TREES)}


@cache
def entry(loop: Any) -> Callable[..., Any]:
    """Return the machine code of `init_roots`, `simulate` or `simulate_parallel`, which does not check argument types.

    The model's outputs may have any strides, because they are often columns of a matrix. Numba's dispatcher would check
    the type of every argument, which takes as long as the simulation at one root.
    """
    code: Callable[..., Any] = loop.compile(_TYPES[loop])
    return code
