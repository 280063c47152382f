"""LightZero's search of MuZero, driven as its own `MuZeroMCTSCtree.search` does, with one network call per simulation.

Runs in an environment of LightZero's own. Reads a request per line, {"roots", "actions", "simulations", "repeats",
"network"}, and answers {"seconds": [...]}. Its C++ tree is loaded by itself: the package around it needs two hundred
others. As in its code, latents lie in NumPy arrays, one per simulation, and are gathered root by root in Python.
"""

import glob
import importlib.util
import json
import sys
import time
from types import ModuleType

import numpy as np
import peer
import torch

LATENT = 64


def compiled_tree() -> ModuleType:
    """Load lzero.mcts.ctree.ctree_muzero.mz_tree without its package."""
    for folder in sys.path:
        for path in glob.glob(f"{folder}/lzero/mcts/ctree/ctree_muzero/mz_tree.*.so"):
            spec = importlib.util.spec_from_file_location("mz_tree", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise peer.missing("LightZero's compiled tree")


class OneLayer(torch.nn.Module):
    """[latent, action] to the next latent, reward, value and logits."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.latent = torch.nn.Parameter(torch.randn(LATENT, LATENT + 2 + actions, generator=generator) / 8)
        self.action = torch.nn.Parameter(torch.randn(actions, LATENT + 2 + actions, generator=generator) / 8)

    def forward(self, latent: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = torch.addmm(self.action[action], latent, self.latent)
        return torch.tanh(output[:, :LATENT]), output[:, LATENT], output[:, LATENT + 1], output[:, LATENT + 2 :]


@torch.no_grad()
def search(tree: ModuleType, roots_: int, actions: int, simulations: int, network) -> None:
    roots = tree.Roots(roots_, [list(range(actions)) for _ in range(roots_)])
    first = torch.zeros(roots_, LATENT)
    latent, _, _, logits = network(first, torch.zeros(roots_, dtype=torch.int64))
    pool = [latent.numpy()]
    roots.prepare_no_noise([0.0] * roots_, logits.tolist(), [-1] * roots_)
    extremes = tree.MinMaxStatsList(roots_)
    extremes.set_delta(0.01)
    for simulation in range(simulations):
        results = tree.ResultsWrapper(num=roots_)
        in_path, in_batch, last, players = tree.batch_traverse(
            roots, 19652, 1.25, 0.997, extremes, results, [-1] * roots_
        )
        latents = torch.from_numpy(np.asarray([pool[x][y] for x, y in zip(in_path, in_batch, strict=True)]))
        latent, reward, value, logits = network(latents, torch.from_numpy(np.asarray(last)).long())
        pool.append(latent.numpy())
        tree.batch_backpropagate(
            simulation + 1, 0.997, reward.numpy().reshape(-1).tolist(), value.numpy().reshape(-1).tolist(),
            logits.numpy().tolist(), extremes, results, players,
        )  # fmt: skip
    roots.get_distributions()
    roots.get_values()


def tree_alone(tree: ModuleType, roots_: int, actions: int, simulations: int) -> float:
    """Return the seconds of traversal and backpropagation alone, on random outputs that lie ready as lists."""
    generator = np.random.default_rng(0)
    rewards = generator.normal(size=(simulations, roots_)).tolist()
    values = generator.normal(size=(simulations, roots_)).tolist()
    logits = generator.normal(size=(simulations + 1, roots_, actions)).tolist()
    roots = tree.Roots(roots_, [list(range(actions)) for _ in range(roots_)])
    roots.prepare_no_noise([0.0] * roots_, logits[-1], [-1] * roots_)
    extremes = tree.MinMaxStatsList(roots_)
    extremes.set_delta(0.01)
    begin = time.perf_counter()
    for simulation in range(simulations):
        results = tree.ResultsWrapper(num=roots_)
        *_, players = tree.batch_traverse(roots, 19652, 1.25, 0.997, extremes, results, [-1] * roots_)
        tree.batch_backpropagate(
            simulation + 1,
            0.997,
            rewards[simulation],
            values[simulation],
            logits[simulation],
            extremes,
            results,
            players,
        )
    return time.perf_counter() - begin


def main() -> None:
    tree = compiled_tree()
    networks: dict[int, torch.nn.Module] = {}
    for request in peer.requests():
        roots, actions, simulations = (request[name] for name in ("roots", "actions", "simulations"))
        torch.set_num_threads(request["threads"])
        seconds = []
        if request["network"] and actions not in networks:
            example = (torch.zeros(roots, LATENT), torch.zeros(roots, dtype=torch.int64))
            networks[actions] = torch.jit.trace(OneLayer(actions), example)
            for _ in range(3):
                search(tree, roots, actions, simulations, networks[actions])
        for _ in range(request["repeats"]):
            if request["network"]:
                begin = time.perf_counter()
                search(tree, roots, actions, simulations, networks[actions])
                seconds.append(time.perf_counter() - begin)
            else:
                seconds.append(tree_alone(tree, roots, actions, simulations))
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
