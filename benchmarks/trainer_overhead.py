"""What the Lightning Trainer costs: the updates per second of a run against those of a bare PyTorch loop.

    python benchmarks/trainer_overhead.py

Both train the same UNet on batches that the same AtariReplay.sample draws from the same store of real Pong rows, with
the same AdamW, scheduler and gradient clipping. The Trainer has the callbacks of configs/base.yaml and its CSV logger,
and Collect, which has nothing to collect here; the bar is drawn as on a terminal, into nothing. The bare loop does
nothing but train. The sides take turns within one fit: after every block of updates the Trainer waits while the bare
loop does a block of its own, so that both meet the same load of the machine; start-up lies before the first block. The
figures are medians over the blocks; of the checkpoints, one in 500 updates, most blocks see none. Beside the wall clock
stands the processor time of the process: on a machine with other work the ratio of the latter is the steadier one.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import report
import torch
import yaml
from lightning import Callback, Trainer

from datamodules.atari import AtariReplay
from datamodules.collector import Collector
from datamodules.environments.atari import AtariEnvironments
from datamodules.replay.store import ReplayStore
from datamodules.settings import Sampling
from modules.frames.unet import UNet
from modules.optimization import Optimization
from pipelines.acting.actors import RandomActor
from pipelines.callbacks.acting.collect import Collect
from pipelines.console import CONFIGS

ROWS, NUM_ENVS = 2000, 8
CLIP = 0.1
WARM = 50
BLOCK = 50
SIDES: dict[float, dict[str, Any]] = {
    # Wanted ms of a bare update: the model. The number of windows in a batch is found by trying.
    20.0: {"size": "small", "unroll": 1},
    5.0: {"size": "debug", "unroll": 1, "frame_loss": "l2", "copy_bias": None},
}


def fill(path: Path, **options: Any) -> None:
    """Write a store of real Pong rows, played at random; options of the environments."""
    environment = AtariEnvironments("pong", NUM_ENVS + 1, **options)
    store = ReplayStore.create(
        path,
        observation_shape=environment.observation_shape,
        num_actions=environment.num_actions,
        num_envs=NUM_ENVS + 1,
        num_validation_envs=1,
        capacity=ROWS // NUM_ENVS,
        description=environment.description,
    )
    collector = Collector(environment, store)
    actor = RandomActor(environment.num_actions, np.random.default_rng(0))
    for _ in range(ROWS // NUM_ENVS):
        collector.step(actor)
    store.close()
    environment.close()


def bare_loop(model: UNet, data: AtariReplay) -> Callable[[int], None]:
    """Return the loop that somebody without a Trainer would write."""
    data.setup("fit")
    model.build_from(data.spec)
    configured = model.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]

    def train(updates: int) -> None:
        for _ in range(updates):
            loss, _, _ = model.loss(data.sample())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            scheduler.step()
            model.updated()

    return train


class TakeTurns(Callback):
    """After every block of the Trainer's updates, lets the other side do as many; keeps the seconds of both."""

    def __init__(self, other: Callable[[int], None]) -> None:
        self.other = other
        self.blocks: dict[str, list[np.ndarray]] = {"trainer": [], "bare": []}

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop the clocks, let the other side train, and start them again."""
        if trainer.global_step < WARM or (trainer.global_step - WARM) % BLOCK:
            return
        begin = clocks()
        if trainer.global_step > WARM:
            self.blocks["trainer"].append((begin - self.begin) / BLOCK)
        self.other(WARM if trainer.global_step == WARM else BLOCK)
        self.begin = clocks()
        if trainer.global_step > WARM:
            self.blocks["bare"].append((self.begin - begin) / BLOCK)


def clocks() -> np.ndarray:
    """Return the milliseconds on the wall and of this process on the processor."""
    return 1e3 * np.array([time.perf_counter(), time.process_time()])


def choose_batch_size(store: Path, model: dict[str, Any], wanted: float) -> int:
    """Return the number of windows that brings a bare update nearest to `wanted` ms of processor time."""
    times: dict[int, float] = {}
    for batch_size in range(1, 9):
        train = bare_loop(UNet(**model), AtariReplay(path=store, sampling=Sampling(batch_size, sequence_length=3)))
        train(5)
        begin = clocks()[1]
        train(20)
        times[batch_size] = (clocks()[1] - begin) / 20
        if times[batch_size] > wanted:
            break
    return min(times, key=lambda batch_size: abs(times[batch_size] - wanted))


def instantiate(entry: dict[str, Any], **more: Any) -> Any:
    """Make what a class_path in a YAML file names."""
    module, name = entry["class_path"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**entry.get("init_args", {}), **more)


def measure(store: Path, folder: Path, model: dict[str, Any], batch_size: int, blocks: int) -> dict[str, Any]:
    """Train with and without the Trainer, in turns."""
    settings = yaml.safe_load((CONFIGS / "base.yaml").read_text())["trainer"]
    loggers, callbacks = settings.pop("logger"), settings.pop("callbacks")
    lightning.seed_everything(0, verbose=False)
    networks = [UNet(**model, optimization=Optimization(1e-3, 1e-4, warmup=50)) for _ in range(2)]
    data = [AtariReplay(path=store, sampling=Sampling(batch_size, sequence_length=3)) for _ in range(2)]
    turns = TakeTurns(bare_loop(networks[1], data[1]))
    trainer = Trainer(**{
        **settings,
        "accelerator": "cpu",
        "max_steps": WARM + blocks * BLOCK,
        "limit_train_batches": WARM + blocks * BLOCK,
        "limit_val_batches": 0,
        "gradient_clip_val": CLIP,
        "default_root_dir": folder,
        "logger": [instantiate(entry, save_dir=folder) for entry in loggers if "CSV" in entry["class_path"]],
        "callbacks": [*(instantiate(entry) for entry in callbacks), Collect(prefill=ROWS), turns],
    })  # fmt: skip
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        trainer.fit(networks[0], datamodule=data[0])
    bare, slow = np.array(turns.blocks["bare"]), np.array(turns.blocks["trainer"])
    ratio, cpu_ratio = np.median(bare / slow, axis=0)
    return {
        "batch_size": batch_size,
        "trainer_vs_bare_loop": round(float(ratio), 4),
        "trainer_vs_bare_loop_quartiles": np.quantile(bare[:, 0] / slow[:, 0], [0.25, 0.75]).round(3).tolist(),
        "trainer_vs_bare_loop_cpu_time": round(float(cpu_ratio), 4),
        **{
            f"{side}{clock}_ms": round(float(value), 3)
            for side, times in (("bare", bare), ("trainer", slow), ("extra", slow - bare))
            for clock, value in zip(("", "_cpu"), np.median(times, axis=0), strict=True)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=20, help="blocks of each side, per model")
    parser.add_argument("--threads", type=int, default=1, help="of torch; one disturbs, and is disturbed, the least")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ |= {"FORCE_COLOR": "1", "COLUMNS": "120"}  # rich draws the bar though nobody looks
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        fill(store)
        for wanted, model in SIDES.items():
            batch_size = choose_batch_size(store, model, wanted)
            times = measure(store, Path(folder) / f"{wanted:.0f}ms", model, batch_size, arguments.blocks)
            suffix = "" if wanted == max(SIDES) else f"_{wanted:.0f}ms"
            figures |= {f"{key}{suffix}": value for key, value in times.items()}
    figures |= {"blocks": arguments.blocks, "updates_per_block": BLOCK, "threads": arguments.threads}
    report.write(Path(__file__).stem, figures)


if __name__ == "__main__":
    main()
