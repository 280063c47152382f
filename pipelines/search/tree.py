"""The trees of a batch of roots, and methods that read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.errors import UserError
from pipelines.machine.memory import free_bytes
from pipelines.search import compiled
from pipelines.search.contract import States


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a tree, as plain values for drawing."""

    index: int
    parent: int
    """Index of the parent; -1 at the root."""
    action: int
    """Action that led to this node; -1 at the root."""
    visits: int
    value: float
    """Mean return for the mover at this node, or the exact value if it is proven."""
    reward: float
    """Reward of the action that led to this node, for the mover at the parent."""
    prior: float
    """Prior probability of the action that led to this node."""
    depth: int
    proven: bool


def gather(states: States, indices: np.ndarray) -> States:
    """Return rows of states (N, B, ...) by indices (M,) int64 into their first two dimensions, flattened."""
    if isinstance(states, Tensor):
        return states.flatten(0, 1).index_select(0, torch.from_numpy(indices).to(states.device))
    return states.reshape(-1)[indices]


class Tree:
    """Trees of a batch of roots, stored in shared arrays, and the states of their nodes.

    Args:
        batch: B, the number of roots.
    """

    def __init__(self, batch: int) -> None:
        self.settings = np.zeros(1, compiled.SETTINGS)
        """(1,) record: settings of the search that grows the trees."""
        self.roots = np.zeros(batch, compiled.ROOTS)
        """(B,) records; a root without nodes was not evaluated yet."""
        self.node_pool = np.empty((batch, 0), compiled.NODES)
        self.edge_pool = np.empty((batch, 0), compiled.EDGES)
        self.proofs = np.empty((batch, 0), compiled.PROOFS)
        self.states: States = np.empty((0, batch), object)
        """(N, B, *state_shape) on the model's device, or an object array (N, B)."""
        self.slots = 0
        """Largest number of nodes that a tree can have so far, which is the index of the next node."""
        self.width = 0
        """Largest number of actions of a root."""
        self.dense = True
        """True if the evaluation lists no legal actions, so that every node has an edge per action."""

    def reserve(self, nodes: int, edges: int, roots: States) -> None:
        """Allocate that many nodes and edges per tree, and states of the shape of the roots (B, ...).

        Raises:
            UserError: the arrays do not fit in memory.
        """
        batch = len(self.roots)
        more_nodes = max(0, nodes - self.node_pool.shape[1])
        more_edges = max(0, edges - self.edge_pool.shape[1])
        proofs = compiled.PROOFS.itemsize if self.settings[0]["prove"] else 0
        size = batch * (nodes * compiled.NODES.itemsize * (more_nodes > 0))
        size += batch * (edges * (compiled.EDGES.itemsize + proofs) * (more_edges > 0))
        if isinstance(roots, Tensor) and roots.device.type == "cpu" and more_nodes:
            size += nodes * roots.nbytes
        # Reading the free memory takes as long as a small search.
        left = free_bytes() if size > 2**26 else None
        if left is not None and size > left:
            raise UserError(
                f"a search of {batch} roots with {nodes} nodes and {edges} actions each takes {size / 2**30:.1f} GiB "
                f"and {left / 2**30:.1f} GiB are free: return the legal actions from evaluate, or search fewer roots"
            )
        if more_nodes:
            self.node_pool = _grown(self.node_pool, nodes)
            self.states = _grown_states(self.states, nodes, roots)
        if more_edges:
            self.edge_pool = _grown(self.edge_pool, edges)
            self.proofs = _grown(self.proofs, edges if proofs else 1)

    def advance(self, actions: np.ndarray) -> Tree:
        """Return the subtrees under actions (B,), for the next `Search.run`.

        A tree has no nodes if its action is -1, was never searched, or ended the game. The next run then evaluates its
        root anew.
        """
        batch, nodes = self.node_pool.shape
        tree = Tree(batch)
        tree.settings, tree.width, tree.dense = self.settings, self.width, self.dense
        tree.node_pool = np.empty_like(self.node_pool)
        tree.edge_pool = np.empty_like(self.edge_pool)
        tree.proofs = np.empty_like(self.proofs)
        origin = np.zeros((nodes, batch), np.int64)
        tree.slots = compiled.keep(
            np.ascontiguousarray(actions, np.int64), self.settings, *self.arrays(), *tree.arrays(), origin
        )
        indices = (origin[: tree.slots] * batch + np.arange(batch)).reshape(-1)
        kept = gather(self.states, indices)
        tree.states = kept.reshape(tree.slots, batch, *self.states.shape[2:])
        # The copied states have no spare slots: `reserve` grows them together with the nodes.
        tree.node_pool = np.ascontiguousarray(tree.node_pool[:, : tree.slots])
        return tree

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the arrays that the compiled loops take: roots, nodes, edges and proofs."""
        return self.roots, self.node_pool, self.edge_pool, self.proofs

    def root_edges(self) -> np.ndarray:
        """Return a view of the roots' edges (B, largest edge count of a root), which are the first in their pools."""
        return self.edge_pool[:, : self.node_pool[:, 0]["count"].max()]

    def root_mask(self) -> np.ndarray:
        """Return which of the `root_edges` (B, largest edge count of a root) belong to the root, as bool."""
        counts = self.node_pool[:, 0]["count"]
        mask: np.ndarray = np.arange(counts.max()) < counts[:, None]
        return mask

    def edges(self, b: int, node: int) -> np.ndarray:
        """Return a view of the records of a node's edges."""
        record = self.node_pool[b, node]
        return self.edge_pool[b, record["start"] : record["start"] + record["count"]]

    def proven(self, b: int, node: int) -> bool:
        """Return whether a node's exact value is known."""
        if not self.settings[0]["prove"]:
            return False
        if node == 0:
            return bool(self.roots[b]["lower"] == self.roots[b]["upper"])
        proof = self.proofs[b, self.node_pool[b, node]["edge"]]
        return bool(proof["lower"] == proof["upper"])

    def nodes(self, b: int) -> list[Node]:
        """Return the nodes of tree b, parents before children."""
        found: list[Node] = []
        queue = [0] if self.roots[b]["nodes"] else []
        for index in queue:
            record = self.node_pool[b, index]
            value, proven = float(record["value"]), self.proven(b, index)
            if proven:
                lower, upper = compiled.bounds_of(b, record, self.proofs)
                value = lower if lower == upper else value
            action, reward, prior = -1, 0.0, 1.0
            if index:
                edge = self.edge_pool[b, record["edge"]]
                action, reward, prior = int(edge["action"]), float(edge["reward"]), float(edge["prior"])
                if self.settings[0]["rule"] == compiled.GUMBEL:
                    prior = float(np.exp(prior))
            parent, visits, depth = int(record["parent"]), int(record["visits"]), int(record["depth"])
            found.append(Node(index, parent, action, visits, value, reward, prior, depth, proven))
            children = self.edges(b, index)["child"]
            queue.extend(int(child) for child in children[children >= 0])
        return found

    def state(self, b: int, node: int) -> Any:
        """Return the state of a node, (*state_shape)."""
        return self.states[node, b]

    def principal(self, b: int) -> list[int]:
        """Return the nodes of the principal line: from the root on, the most visited child of each node."""
        line = [0]
        while len(edges := self.edges(b, line[-1])):
            child = int(edges[edges["visits"].argmax()]["child"])
            if child < 0:
                break
            line.append(child)
        return line


def _grown(pool: np.ndarray, size: int) -> np.ndarray:
    grown = np.empty((len(pool), size), pool.dtype)
    kept = min(pool.shape[1], size)
    grown[:, :kept] = pool[:, :kept]
    return grown


def _grown_states(states: States, nodes: int, roots: States) -> States:
    grown: Any
    if isinstance(roots, Tensor):
        grown = roots.new_empty((nodes, *roots.shape))
    else:
        grown = np.empty((nodes, *roots.shape), object)
    if len(states):
        grown[: len(states)] = states
    return grown
