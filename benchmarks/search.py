"""Simulations per second of the tree search, beside LightZero's C++ tree and mctx.

    python benchmarks/search.py --lightzero-python PATH --mctx-python PATH [--repeats 7] [--threads 1]

The peers live in environments of their own (`pip install --no-deps LightZero` beside torch; `pip install mctx`);
without one its columns stay empty. Everyone searches with MuZero's rule, 50 simulations, no noise, through the same
one-layer network (64 latents and an action to 64 latents, reward, value and logits: one matrix product), which the
two on PyTorch trace. Turns alternate in one run; each is two searches, of which the second counts, since the threads
of the one before may still spin in the first. A figure is a median of simulations/s over the turns, a ratio that of
medians. LightZero's tree is driven as its own search drives it, with one network call per simulation. "tree" is the
tree's work alone, on random outputs that lie ready: our compiled loops, its traversal and backpropagation; beside it
all that our search does around the loops. "busy" is our slowest rate while another process spins on a core.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import report
import smoke
import torch
from torch import Tensor

from modules.world_model import Step
from pipelines.search import compiled
from pipelines.search.contract import Evaluation
from pipelines.search.rules import Gumbel, Puct, Stop
from pipelines.search.search import Search

LATENT, SIMULATIONS = 64, 50
ROOTS, ACTIONS = (1, 8, 64, 256), (6, 18)
PEERS = Path(__file__).parent / "peers"


class OneLayer(torch.nn.Module):
    """[latent, action] to the next latent, reward, value, logits and continuation."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.latent = torch.nn.Parameter(torch.randn(LATENT, LATENT + 2 + actions, generator=generator) / 8)
        self.action = torch.nn.Parameter(torch.randn(actions, LATENT + 2 + actions, generator=generator) / 8)

    def forward(self, latent: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        output = torch.addmm(self.action[action], latent, self.latent)
        reward, value, logits = output[:, LATENT], output[:, LATENT + 1], output[:, LATENT + 2 :]
        return torch.tanh(output[:, :LATENT]), reward, value, logits, torch.ones_like(reward)


class Ours:
    """This project's search of one size."""

    def __init__(self, roots: int, actions: int, rule: Puct | Gumbel) -> None:
        example = (torch.zeros(roots, LATENT), torch.zeros(roots, dtype=torch.int64))
        self.network = torch.jit.freeze(torch.jit.trace(OneLayer(actions).eval(), example))
        self.search = Search(rule, Stop(SIMULATIONS))
        self.roots, self.none = example

    def expand(self, states: Tensor, actions: Tensor) -> tuple[Step, Evaluation]:
        latent, reward, value, logits, continuation = self.network(states, actions)
        return Step(latent, reward, continuation), Evaluation(logits, value)

    def evaluate(self, states: Tensor) -> Evaluation:
        return self.expand(states, self.none)[1]

    def run(self) -> float:
        begin = time.perf_counter()
        self.search.run(self.roots, None, self.evaluate, expand=self.expand)
        return time.perf_counter() - begin


class Stopwatch:
    """Adds up the seconds inside the functions that it times."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - begin
            return result

        return call


class Ready:
    """Outputs that lie ready: what is left is the tree's work, and the search's own bookkeeping around it."""

    def __init__(self, roots: int, actions: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.state = torch.zeros(roots, 1)
        ones = torch.ones(roots)
        self.outputs = []
        for _ in range(SIMULATIONS + 1):
            reward, value = torch.randn(2, roots, generator=generator).unbind()
            logits = torch.randn(roots, actions, generator=generator)
            self.outputs.append((Step(self.state, reward, ones), Evaluation(logits, value)))
        self.search = Search(Puct(), Stop(SIMULATIONS))

    def run(self) -> float:
        ready = iter(self.outputs)
        begin = time.perf_counter()
        self.search.run(self.state, None, lambda states: next(ready)[1], expand=lambda states, actions: next(ready))
        return time.perf_counter() - begin

    def tree(self) -> float:
        """Return the seconds inside the compiled loops: what a peer's traversal and backpropagation do."""
        inside = Stopwatch()
        entry = compiled.entry
        compiled.entry = lambda loop: inside.timed(entry(loop))  # type: ignore[assignment]
        self.run()
        compiled.entry = entry
        return inside.seconds


class Peer:
    """A peer's process, which answers a line with a line."""

    def __init__(self, python: str, script: str, threads: int) -> None:
        self.threads = threads
        self.process = subprocess.Popen(
            [python, str(PEERS / script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, roots: int, actions: int, network: bool = True) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {
            "roots": roots, "actions": actions, "simulations": SIMULATIONS, "repeats": 1,
            "network": network, "threads": self.threads,
        }  # fmt: skip
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())["seconds"][0]


def rates(contestants: dict[str, Callable[[], float]], simulations: int, repeats: int) -> dict[str, float]:
    """Return every contestant's median simulations per second; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 2):
        for name, run in contestants.items():
            run()
            taken = run()
            if repeat >= 2:
                seconds[name].append(taken)
    return {name: simulations / float(np.median(taken)) for name, taken in seconds.items()}


def _spin() -> None:
    while True:
        pass


@contextmanager
def busy() -> Iterator[None]:
    """Let another process spin."""
    process = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    process.start()
    time.sleep(1)
    yield
    process.terminate()


def efficientzero_share(roots: int, repeats: int) -> float:
    """Return the share of the search's time that is not the network's, with EfficientZero's Atari network."""
    from modules.latents.muzero import MuZero
    from modules.world_model import Spec

    model = MuZero("efficientzero", support=601, norm="batch").eval()
    model.build_from(Spec((3, 96, 96), 4, 6))
    inside = Stopwatch()

    @inside.timed
    def expand(states: Tensor, actions: Tensor) -> tuple[Step, Evaluation]:
        step = model.step(states, actions)
        return step, Evaluation(*model.policy(model.features(step.state)))

    @inside.timed
    def evaluate(states: Tensor) -> Evaluation:
        return Evaluation(*model.policy(model.features(states)))

    with torch.no_grad():
        states = model.observe(
            model.initial(roots), torch.zeros(roots, dtype=torch.int64),
            torch.randint(0, 256, (roots, 12, 96, 96), dtype=torch.uint8), torch.ones(roots, dtype=torch.bool),
        )  # fmt: skip
    search = Search(Puct(), Stop(SIMULATIONS))
    shares = []
    for _ in range(repeats + 2):
        inside.seconds, begin = 0.0, time.perf_counter()
        search.run(states, None, evaluate, expand=expand)
        shares.append(1 - inside.seconds / (time.perf_counter() - begin))
    return float(np.median(shares[2:]))  # the first loads code and memory, as the first turns above


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--lightzero-python", help="Python of the environment that has LightZero")
    parser.add_argument("--mctx-python", help="Python of the environment that has mctx")
    parser.add_argument("--repeats", type=int, default=7, smoke=1, help="turns of every contestant")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch; JAX takes what there are")
    parser.add_argument(
        "--efficientzero_roots",
        type=int,
        nargs="+",
        default=[8, 64],
        smoke=[8],
        help="roots of EfficientZero's network",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peers = {}
    for name, python, script in (
        ("lightzero", options.lightzero_python, "lightzero.py"),
        ("mctx", options.mctx_python, "mctx_search.py"),
    ):
        if python:
            peers[name] = Peer(python, script, options.threads)
        else:
            print(f"{name} is skipped: no --{name}-python")

    table: dict[str, dict[str, dict[str, float]]] = {}
    trees: dict[str, dict[str, dict[str, float]]] = {}
    for actions in ACTIONS:
        for roots in ROOTS:
            contestants = {"ours": Ours(roots, actions, Puct()).run, "ours_gumbel": Ours(roots, actions, Gumbel()).run}
            for name, peer in peers.items():
                contestants[name] = lambda peer=peer: peer.run(roots, actions)  # noqa: B023
            found = rates(contestants, roots * SIMULATIONS, options.repeats)
            table.setdefault(str(actions), {})[str(roots)] = {name: round(rate) for name, rate in found.items()}
            ready = Ready(roots, actions)
            contestants = {"ours": ready.tree, "ours_with_bookkeeping": ready.run}
            if "lightzero" in peers:
                contestants["lightzero"] = lambda: peers["lightzero"].run(roots, actions, network=False)  # noqa: B023
            found = rates(contestants, roots * SIMULATIONS, options.repeats)
            trees.setdefault(str(actions), {})[str(roots)] = {name: round(rate) for name, rate in found.items()}
            print(actions, roots, table[str(actions)][str(roots)], trees[str(actions)][str(roots)], flush=True)
    with busy():
        slowest = {
            str(roots): round(
                min(
                    roots * SIMULATIONS / Ours(roots, actions, Puct()).run()
                    for actions in ACTIONS
                    for _ in range(options.repeats)
                )
            )
            for roots in ROOTS
        }

    def ratio(cells: dict[str, dict[str, dict[str, float]]], peer: str, roots: str, actions: str) -> float:
        return cells[actions][roots]["ours"] / cells[actions][roots][peer]

    figures: dict[str, Any] = {}
    many = [(roots, actions) for roots in ("64", "256") for actions in ("6", "18")]
    if "lightzero" in peers:
        figures["vs_lightzero_min_64_256"] = round(min(ratio(table, "lightzero", *cell) for cell in many), 2)
        figures["tree_vs_lightzero_min"] = round(
            min(ratio(trees, "lightzero", roots, actions) for roots in trees["6"] for actions in trees), 2
        )
        figures["tree_vs_lightzero_min_64_256"] = round(min(ratio(trees, "lightzero", *cell) for cell in many), 2)
    if "mctx" in peers:
        figures["vs_mctx_min_64_256"] = round(min(ratio(table, "mctx", *cell) for cell in many), 2)
        figures["vs_mctx_18_min"] = round(min(ratio(table, "mctx", roots, "18") for roots in ("64", "256")), 2)
        figures["vs_mctx_1"] = round(
            float(np.sqrt(ratio(table, "mctx", "1", "6") * ratio(table, "mctx", "1", "18"))), 2
        )
    figures["slowest_while_busy"] = slowest
    figures["tree_share_efficientzero"] = {
        str(roots): round(efficientzero_share(roots, min(3, options.repeats)), 4)
        for roots in options.efficientzero_roots
    }
    report.write(
        "search",
        {**figures, "simulations": SIMULATIONS, "threads": options.threads, "rates": table, "tree_rates": trees},
        options,
    )  # fmt: skip


if __name__ == "__main__":
    main()
