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
import smoke
import torch
import yaml
from lightning import Callback, Trainer
from torch.optim.lr_scheduler import LambdaLR

from datamodules.atari import AtariReplay
from datamodules.collector import Collector
from datamodules.environments.atari import AtariEnvironments
from datamodules.replay.store import ReplayStore
from datamodules.settings import Sampling
from modules.frames.unet import FrameLoss, UNet, Unroll
from modules.optimization import Optimization
from modules.world_model import WorldModel
from pipelines.acting.actors import RandomActor
from pipelines.callbacks.acting.collect import Collect
from pipelines.console import CONFIGS

NUM_ENVS = 8
CLIP = 0.1
SIDES: dict[float, dict[str, Any]] = {
    # Wanted ms of a bare update: the model. The number of windows in a batch is found by trying.
    20.0: {"size": "small", "unroll": Unroll(1)},
    5.0: {"size": "debug", "unroll": Unroll(1), "frame": FrameLoss("l2", copy_bias=None)},
}


def fill(path: Path, rows: int, **options: Any) -> None:
    """Write a store of real Pong rows, played at random; the options are those of the environments."""
    environment = AtariEnvironments("pong", NUM_ENVS + 1, **options)
    store = ReplayStore.create(
        path,
        observation_shape=environment.observation_shape,
        num_actions=environment.num_actions,
        num_envs=NUM_ENVS + 1,
        num_validation_envs=1,
        capacity=rows // NUM_ENVS,
        description=environment.description,
    )
    collector = Collector(environment, store)
    actor = RandomActor(environment.num_actions, np.random.default_rng(0))
    for _ in range(rows // NUM_ENVS):
        collector.step(actor)
    store.close()
    environment.close()


def bare_loop(model: WorldModel, data: AtariReplay, clip: float) -> Callable[[int], None]:
    """Return the loop that somebody without a Trainer would write."""
    data.setup("fit")
    model.build_from(data.spec)
    optimizer = torch.optim.AdamW(model.parameter_groups())
    scheduler = LambdaLR(optimizer, lambda update: min(1.0, (update + 1) / max(1, model.optimization.warmup)))

    def train(updates: int) -> None:
        for _ in range(updates):
            loss = model.loss(data.sample())[0]
            optimizer.zero_grad()
            loss.backward()
            for part in model.gradient_parts():
                torch.nn.utils.clip_grad_norm_(list(part.parameters()), clip)
            optimizer.step()
            scheduler.step()
            model.updated()

    return train


class TakeTurns(Callback):
    """After every block of the Trainer's updates, lets the other side do as many; keeps the milliseconds of both."""

    def __init__(self, other: Callable[[int], None], block: int) -> None:
        self.other = other
        self.block = block
        self.blocks: dict[str, list[np.ndarray]] = {"trainer": [], "bare": []}

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop the clocks, let the other side train, and start them again; the first block warms both up."""
        if trainer.global_step % self.block:
            return
        begin = clocks()
        if trainer.global_step > self.block:
            self.blocks["trainer"].append((begin - self.begin) / self.block)
        self.other(self.block)
        self.begin = clocks()
        if trainer.global_step > self.block:
            self.blocks["bare"].append((self.begin - begin) / self.block)


def clocks() -> np.ndarray:
    """Return the milliseconds on the wall and of this process on the processor."""
    return 1e3 * np.array([time.perf_counter(), time.process_time()])


def choose_batch_size(store: Path, model: dict[str, Any], wanted: float, block: int) -> int:
    """Return the number of windows that brings a bare update nearest to `wanted` ms of processor time."""
    times: dict[int, float] = {}
    for batch_size in range(1, 9):
        train = bare_loop(
            UNet(**model), AtariReplay(path=store, sampling=Sampling(batch_size, sequence_length=3)), CLIP
        )
        train(block // 2)
        begin = clocks()[1]
        train(block // 2)
        times[batch_size] = (clocks()[1] - begin) / (block // 2)
        if times[batch_size] > wanted:
            break
    return min(times, key=lambda batch_size: abs(times[batch_size] - wanted))


def instantiate(entry: dict[str, Any], **more: Any) -> Any:
    """Make what a class_path in a YAML file names."""
    module, name = entry["class_path"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**entry.get("init_args", {}), **more)


def race(
    networks: list[Any], data: list[AtariReplay], folder: Path, clip: float, blocks: int, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Train two alike, one by the bare loop and one by the Trainer, in turns.

    Returns:
        the milliseconds of an update by the bare loop and by the Trainer, (blocks, 2) each: wall and processor.
    """
    settings = yaml.safe_load((CONFIGS / "base.yaml").read_text())["trainer"]
    loggers, callbacks = settings.pop("logger"), settings.pop("callbacks")
    turns = TakeTurns(bare_loop(networks[1], data[1], clip), block)
    trainer = Trainer(**{
        **settings,
        "accelerator": "cpu",
        "profiler": instantiate(settings["profiler"]),
        "max_steps": (1 + blocks) * block,
        "limit_train_batches": (1 + blocks) * block,
        "limit_val_batches": 0,
        "gradient_clip_val": clip,
        "default_root_dir": folder,
        "logger": [instantiate(entry, save_dir=folder) for entry in loggers if "CSV" in entry["class_path"]],
        "callbacks": [*(instantiate(entry) for entry in callbacks), Collect(prefill=1), turns],
    })  # fmt: skip
    os.environ |= {"FORCE_COLOR": "1", "COLUMNS": "120"}  # rich draws the bar though nobody looks
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        trainer.fit(networks[0], datamodule=data[0])
    return np.array(turns.blocks["bare"]), np.array(turns.blocks["trainer"])


def measure(store: Path, folder: Path, model: dict[str, Any], batch_size: int, blocks: int, block: int) -> Any:
    """Train a UNet with and without the Trainer, in turns."""
    lightning.seed_everything(0, verbose=False)
    networks = [UNet(**model, optimization=Optimization(1e-3, 1e-4, warmup=50)) for _ in range(2)]
    data = [AtariReplay(path=store, sampling=Sampling(batch_size, sequence_length=3)) for _ in range(2)]
    bare, slow = race(networks, data, folder, CLIP, blocks, block)
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
    parser = smoke.Parser(__doc__)
    parser.add_argument("--blocks", type=int, default=20, smoke=2, help="blocks of each side, per model")
    parser.add_argument("--block", type=int, default=50, smoke=2, help="updates of a block")
    parser.add_argument("--rows", type=int, default=2000, smoke=200, help="rows of the store")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; one disturbs the least")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        fill(store, options.rows)
        for wanted, model in SIDES.items():
            batch_size = choose_batch_size(store, model, wanted, options.block)
            run = Path(folder) / f"{wanted:.0f}ms"
            times = measure(store, run, model, batch_size, options.blocks, options.block)
            suffix = "" if wanted == max(SIDES) else f"_{wanted:.0f}ms"
            figures |= {f"{key}{suffix}": value for key, value in times.items()}
    figures |= {"blocks": options.blocks, "updates_per_block": options.block, "threads": options.threads}
    report.write(Path(__file__).stem, figures, options)


if __name__ == "__main__":
    main()
