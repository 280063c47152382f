"""Runs the network of a simulation as one CUDA graph, because launching its kernels takes longer than running them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modules.world_model import Step
from pipelines.search.contract import Dynamics, Evaluate, Evaluation

WARM_UP = 3
"""Number of calls before a capture, in which libraries choose their kernels and allocate their memory."""
MOST = 8
"""Largest number of recorded graphs, each with its own memory; other sizes run without a graph."""


class Graphed:
    """Steps and evaluates in one call, which is recorded once per number of rows and then replayed.

    Weights may change in place between calls, as an optimizer and `load_state_dict` change them. The next call
    overwrites the tensors that a call returned. On a CPU nothing is recorded.

    Args:
        dynamics: `capturable` dynamics: its operations do not depend on the values, and it reads no value back.
        evaluate: evaluator that is recorded with the dynamics.
    """

    def __init__(self, dynamics: Dynamics, evaluate: Evaluate) -> None:
        self.dynamics = dynamics
        self.evaluate = evaluate
        self._graphs: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Any]] = {}

    def __call__(self, states: Tensor, actions: Tensor) -> tuple[Step, Evaluation]:
        """Map states (B, *state_shape) and actions (B,) to the step and the evaluation of the next states."""
        if states.device.type != "cuda":
            return self._call(states, actions)
        precision = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        key = (states.device, states.shape, states.dtype, precision)
        if key not in self._graphs:
            if len(self._graphs) == MOST:
                return self._call(states, actions)
            self._graphs[key] = self._record(states, actions, precision)
        graph, own_states, own_actions, found = self._graphs[key]
        own_states.copy_(states)
        own_actions.copy_(actions)
        graph.replay()
        return found

    def _call(self, states: Tensor, actions: Tensor) -> tuple[Step, Evaluation]:
        step = self.dynamics.step(states, actions)
        return step, self.evaluate(step.state)

    def _record(
        self, states: Tensor, actions: Tensor, precision: torch.dtype | None
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Any]:
        own_states, own_actions = states.clone(), actions.clone()
        stream = torch.cuda.Stream(states.device)
        stream.wait_stream(torch.cuda.current_stream(states.device))
        graph = torch.cuda.CUDAGraph()
        # A graph would replay cached casts of the weights after the weights have changed.
        with torch.autocast("cuda", precision, enabled=precision is not None, cache_enabled=False):
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._call(own_states, own_actions)
            torch.cuda.current_stream(states.device).wait_stream(stream)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                found = self._call(own_states, own_actions)
        return graph, own_states, own_actions, found
