"""Tiny worlds with exact answers: a table, and tic-tac-toe by open_spiel."""

import numpy as np
import torch

from modules.world_model import Step
from pipelines.search.contract import Evaluation
from pipelines.search.dynamics import GameDynamics
from pipelines.search.evaluators import Uniform


class TableWorld:
    """A deterministic decision process: states are int64 tensors (B,), all is looked up, and calls are counted."""

    def __init__(self, num_states=12, num_actions=4, end=0.15, seed=0):
        g = torch.Generator().manual_seed(seed)
        shape = (num_states, num_actions)
        self.next = torch.randint(num_states, shape, generator=g)
        self.reward = torch.rand(shape, generator=g)
        self.continuation = (torch.rand(shape, generator=g) >= end).float()
        self.logits = torch.randn(shape, generator=g)
        self.value = torch.rand(num_states, generator=g)
        self.steps = self.evaluations = 0

    def step(self, states, actions):
        self.steps += 1
        at = (states, actions)
        return Step(self.next[at], self.reward[at], self.continuation[at])

    def evaluate(self, states):
        self.evaluations += 1
        return Evaluation(self.logits[states], self.value[states], None)

    def solve(self, discount):
        """Value iteration, as the search counts: returns the action values (S, A)."""
        q = torch.zeros_like(self.reward, dtype=torch.float64)
        for _ in range(2000):
            q = self.reward + discount * self.continuation * q.max(dim=1).values[self.next]
        return q.numpy()


class Game(GameDynamics):
    """A game for two whose batches are counted, and of whose states nothing is known but the legal moves."""

    def __init__(self, name):
        super().__init__(name)
        self.rows = []
        self.evaluate = Uniform(self)

    def roots(self, states):
        array = np.empty(len(states), object)
        array[:] = states
        return array

    def step(self, states, actions):
        self.rows.append(len(states))
        return super().step(states, actions)


def solve(state, known=None):
    """Return the exact value of every position under `state`, for its mover, by its history-free string."""
    known = {} if known is None else known
    key = str(state)
    if key not in known:
        best = -1.0
        for action in state.legal_actions():
            child = state.child(action)
            over = child.is_terminal()
            best = max(best, child.returns()[state.current_player()] if over else -solve(child, known)[str(child)])
        known[key] = best
    return known


def positions(state):
    """Return every position that is not over and can be reached, once."""
    found, queue = {str(state): state}, [state]
    for at in queue:
        for action in at.legal_actions():
            child = at.child(action)
            if not child.is_terminal() and str(child) not in found:
                found[str(child)] = child
                queue.append(child)
    return list(found.values())
