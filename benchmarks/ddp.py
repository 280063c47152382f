"""What a second process brings: updates and real steps per second of a run with one rank and with two.

    python benchmarks/ddp.py [--repeats 3] [--updates 200]

Each rank plays eight environments of Pong, learns from batches of its own, and has one thread; two ranks share their
gradients by DDP over gloo, so an update of theirs learns from twice as many windows. One and two ranks take turns. A
rate is that of all ranks together over the updates after the first quarter; a ratio is of medians. "apart" are two runs
of one rank at the same time, which share nothing but the machine: what its second core can bring at all.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import lightning
import numpy as np
import report
import smoke
import training
import yaml

from pipelines.console import CONFIGS

ENVS, STEPS_PER_UPDATE = 8, 8


class Clock(lightning.Callback):
    """Writes down when each update was over."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.times: list[tuple[int, float, float]] = []

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:  # type: ignore[no-untyped-def]
        """Note the time."""
        import time

        self.times.append((trainer.global_step, time.perf_counter(), trainer.datamodule.env_steps))

    def on_train_end(self, trainer, pl_module) -> None:  # type: ignore[no-untyped-def]
        """Write."""
        if trainer.is_global_zero:
            with open(self.path, "w") as file:
                csv.writer(file).writerows(self.times)


def rates(ranks: int, updates: int) -> tuple[float, float]:
    """Return windows learned from and real steps per second, of all ranks together."""
    with tempfile.TemporaryDirectory() as folder:
        times, config = Path(folder) / "times.csv", Path(folder) / "config.yaml"
        content = yaml.safe_load((CONFIGS / "experiment" / "unet.yaml").read_text())
        content["data"]["init_args"] |= {"envs": {"training": ENVS}, "size": [42, 42]}
        content["data"]["init_args"]["sampling"]["batch_size"] = 4
        content["data"]["init_args"]["num_threads"] = 1
        content["model"]["init_args"]["size"] = "debug"
        collect = {"prefill": 1000, "steps_per_update": STEPS_PER_UPDATE}
        content["trainer"]["callbacks+"] = [
            {"class_path": "pipelines.callbacks.acting.collect.Collect", "init_args": collect},
            {"class_path": "ddp.Clock", "init_args": {"path": str(times)}},
        ]
        config.write_text(yaml.safe_dump(content))
        command = [
            *(sys.executable, "-m", "pipelines.cli", "fit", "--config", str(config), "--data.game=Pong"),
            *(f"--trainer.max_steps={updates}", f"--trainer.limit_train_batches={updates}"),
            *("--trainer.accelerator=cpu", f"--trainer.devices={ranks}", f"--trainer.default_root_dir={folder}/run"),
            *(("--trainer.strategy=ddp",) if ranks > 1 else ()),
        ]
        outcome = subprocess.run(command, cwd=smoke.ROOT, env=training.environment(), capture_output=True, text=True)
        if outcome.returncode:
            raise SystemExit(outcome.stderr[-2000:])
        rows = np.loadtxt(times, delimiter=",")
    rows = rows[len(rows) // 4 :]
    made, seconds, played = rows[-1] - rows[0]
    return ranks * made / seconds, ranks * played / seconds


def apart(updates: int) -> tuple[float, float]:
    """Return the rates of two runs beside each other, together."""
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: rates(1, updates), range(2)))
    return found[0][0] + found[1][0], found[0][1] + found[1][1]


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3, smoke=1, help="turns of every kind of run")
    parser.add_argument("--updates", type=int, default=200, smoke=8, help="updates of a run")
    options = parser.parse_args()
    kinds = {"1": partial(rates, 1), "2": partial(rates, 2), "apart": apart}
    turns = [{kind: measure(options.updates) for kind, measure in kinds.items()} for _ in range(options.repeats)]
    found = {kind: np.median([turn[kind] for turn in turns], axis=0) for kind in kinds}
    names = ("batches_per_second", "real_steps_per_second")
    figures = {name: {kind: round(float(rate[i]), 1) for kind, rate in found.items()} for i, name in enumerate(names)}
    ratio, bound = (round(float((found[kind] / found["1"]).min()), 2) for kind in ("2", "apart"))
    setting = {"repeats": options.repeats, "updates": options.updates}
    report.write("ddp", {"ratio": ratio, "apart": bound, **figures, **setting}, options)


if __name__ == "__main__":
    main()
