"""Steps and evaluates the leaves of all trees in one batch; states stay on their device."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from modules.world_model import Step
from pipelines.search.contract import Dynamics, Evaluate, Evaluation, Expand, States
from pipelines.search.tree import Tree

ALL_ACTIONS = np.empty((0, 0), np.int64)
"""Array (0, 0) that stands for all actions, where the evaluation lists none."""


class Outputs(NamedTuple):
    """Outputs of the model for a batch of rows, as arrays for the compiled loops."""

    logits: np.ndarray
    """(rows, K) float32: unnormalised log prior."""
    actions: np.ndarray
    """(rows, K) int64: legal actions padded with -1; (0, 0) stands for all actions."""
    value: np.ndarray
    """(rows,) float32: expected return for the player to move."""
    reward: np.ndarray
    """(rows,) float32: reward of the action that led to the leaf."""
    continuation: np.ndarray
    """(rows,) float32: probability that the episode goes on at the leaf."""


class Leaves:
    """The leaves that wait for the model, one per root.

    The batch of a tensor includes idle rows, so that its shape is constant. The batch of an object array holds only
    the waiting rows.

    Args:
        roots: tensor (B, *state_shape), or object array (B,).
        dynamics: dynamics that step the states; None if `expand` steps them.
        evaluate: evaluator of the states.
        expand: one call for the step and the evaluation; None calls `dynamics` and `evaluate`.
    """

    def __init__(self, roots: States, dynamics: Dynamics | None, evaluate: Evaluate, expand: Expand | None) -> None:
        self.roots = roots
        self.evaluate = evaluate
        self.expand = expand or self._step_and_evaluate
        self.dynamics = dynamics
        self.device = roots.device if isinstance(roots, Tensor) else torch.device("cpu")
        self.on_host = self.device.type == "cpu"
        self._pairs = torch.zeros((2, len(roots)), dtype=torch.int64, pin_memory=self.device.type == "cuda")
        self.indices: np.ndarray = self._pairs.numpy()
        """(2, B) int64: flat indices into the trees' states, and actions. The compiled loops write it."""
        self._states, self._actions = self._pairs.unbind()
        self._pool: States | None = None
        self._flat: Any = None

    def evaluate_roots(self) -> Outputs:
        """Evaluate the roots."""
        return self._outputs(None, self.evaluate(self.roots))

    def ask(self, tree: Tree, waiting: int) -> Outputs:
        """Step and evaluate the waiting leaves, and write their states to the slot of the trees' next nodes."""
        if tree.states is not self._pool:
            self._pool, self._flat = tree.states, tree.states.reshape(-1, *tree.states.shape[2:])
        if isinstance(tree.states, Tensor):
            states, actions = self._states, self._actions
            if not self.on_host:
                states, actions = self._pairs.to(self.device, non_blocking=True).unbind()
            step, evaluation = self.expand(self._flat.index_select(0, states), actions)
            tree.states[tree.slots] = step.state
        else:
            parents = self._flat[self.indices[0, :waiting]]
            step, evaluation = self.expand(parents, self._actions[:waiting].clone())
            tree.states[tree.slots, np.flatnonzero(tree.roots["waiting"])] = step.state
        return self._outputs(step, evaluation)

    def _step_and_evaluate(self, states: Any, actions: Tensor) -> tuple[Step, Evaluation]:
        assert self.dynamics is not None, "a search without dynamics needs expand"
        step = self.dynamics.step(states, actions)
        return step, self.evaluate(step.state)

    def _outputs(self, step: Step | None, evaluation: Evaluation) -> Outputs:
        logits, value = evaluation.logits, evaluation.value
        reward, continuation = (value, value) if step is None else (step.reward, step.continuation)
        if not self.on_host and isinstance(logits, Tensor):
            # Every copy from the device synchronises with it, so all outputs go in one copy.
            parts = [torch.as_tensor(part, device=self.device) for part in (logits, value, reward, continuation)]
            flat = torch.cat([part.reshape(-1).float() for part in parts]).cpu().numpy()
            rows, size = len(logits), logits.numel()
            value, reward, continuation = flat[size:].reshape(3, rows)
            logits = flat[:size].reshape(rows, -1)
        actions = ALL_ACTIONS if evaluation.actions is None else _array(evaluation.actions, np.int64)
        outputs = Outputs(
            _array(logits, np.float32),
            actions,
            _array(value, np.float32),
            _array(reward, np.float32),
            _array(continuation, np.float32),
        )
        assert outputs.logits.ndim == outputs.actions.ndim == 2
        assert outputs.value.ndim == outputs.reward.ndim == outputs.continuation.ndim == 1
        return outputs


def _array(values: Any, dtype: type) -> np.ndarray:
    if isinstance(values, Tensor):
        values = (values.float() if values.dtype is torch.bfloat16 else values).numpy(force=True)
    return np.asarray(values, dtype)
