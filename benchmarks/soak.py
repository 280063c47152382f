"""A run that goes on and on: does it grow, does it slow down?

    python benchmarks/soak.py [--minutes 70] [--experiment unet__dyna_q] [--folder FOLDER]

One run at debug size on one thread: it plays, dreams, learns from both, evaluates and writes checkpoints all the time,
and its store of real steps is a small ring, so that after a warm-up of a fifth of the time nothing has a reason to
grow. Memory is what the process holds for itself, pages of the mapped store not counted, as the mean of a twelfth of
the rest each. The rate is of updates, per second of the processor, as other work on the machine does not count.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lightning
import numpy as np
import report
import smoke
import training
import yaml

from pipelines.console import CONFIGS

PARTS = 12
WARM_UP = 0.2


class Meter(lightning.Callback):
    """Writes down every few seconds how far the run is and what it holds."""

    def __init__(self, path: str, seconds: float) -> None:
        self.path = path
        self.seconds = seconds
        self.looked = 0.0

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:  # type: ignore[no-untyped-def]
        """Append (updates, real steps, seconds, seconds of the processor, bytes, bytes of mapped files)."""
        now = time.monotonic()
        if now - self.looked >= self.seconds:
            self.looked = now
            held = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            kilobytes = [int(held[name].split()[0]) for name in ("RssAnon", "RssFile")]
            figures = [trainer.global_step, trainer.datamodule.env_steps, now, time.process_time(), *kilobytes]
            with open(self.path, "a") as file:
                print(*figures, file=file)


def configuration(experiment: str, meter: Path, seconds: float) -> str:
    """Return the experiment at debug size, for ever, with a meter."""
    content = yaml.safe_load((CONFIGS / "experiment" / f"{experiment}.yaml").read_text())
    content["data"]["init_args"] |= {"storage": {"capacity": 2000}, "envs": {"training": 2}}
    content["model"]["init_args"]["rounds"] = {"model_updates": 1, "policy_updates": 1, "together": True}
    content["trainer"] |= {"max_steps": 10**7, "limit_train_batches": 500}
    for callback in content["trainer"]["callbacks+"]:
        match callback["class_path"].rsplit(".", 1)[1]:
            case "Collect":
                callback["init_args"] |= {"prefill": 1000, "steps_per_update": 1.0, "steps_per_round": 0}
            case "Evaluate":
                callback["init_args"] |= {"every": 5000, "episodes": 2, "final_episodes": 2, "max_steps": 200}
    content["trainer"]["callbacks+"].append(
        {"class_path": "soak.Meter", "init_args": {"path": str(meter), "seconds": seconds}}
    )
    return yaml.safe_dump(content)


def measure(experiment: str, minutes: float, seconds: float, folder: Path, *more: str) -> np.ndarray:
    """Run it, and return what the meter wrote, a row for every look."""
    meter, config = folder / "meter.txt", folder / "config.yaml"
    config.write_text(configuration(experiment, meter, seconds))
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "fit",
        "--config",
        str(config),
        "--trainer.accelerator=cpu",
        *more,
    ]
    command += [f"--trainer.default_root_dir={folder / 'run'}"]
    limit = round(60 * minutes)
    command += [f"--trainer.max_time=00:{limit // 3600:02}:{limit // 60 % 60:02}:{limit % 60:02}"]
    with (folder / "log.txt").open("w") as log:
        outcome = subprocess.run(command, cwd=smoke.ROOT, env=training.environment(), stdout=log, stderr=log)
    if outcome.returncode:
        raise SystemExit(f"the run failed: see {folder / 'log.txt'}")
    return np.loadtxt(meter)


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--minutes", type=float, default=70, smoke=0.5, help="minutes after which the run ends")
    parser.add_argument("--seconds", type=float, default=10.0, smoke=0.2, help="seconds between two looks")
    parser.add_argument("--experiment", default="unet__dyna_q", help="experiment that runs")
    parser.add_argument("--folder", type=Path, help="folder of the run, which is kept; a temporary one unless given")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    more = ["--debug=true"] if options.smoke else []
    looks = measure(options.experiment, options.minutes, options.seconds, folder, *more)
    updates, steps, wall, processor, anonymous, mapped = looks.T
    parts = np.array_split(np.flatnonzero(wall - wall[0] >= WARM_UP * (wall[-1] - wall[0])), PARTS)
    memory = np.array([anonymous[part].mean() / 1024 for part in parts])
    rate = np.array([np.ptp(updates[part]) / np.ptp(processor[part]) for part in parts])
    report.write(
        "soak",
        {
            "experiment": options.experiment,
            "minutes": round(float(wall[-1] - wall[0]) / 60, 1),
            "updates": int(updates[-1]),
            "real_steps": int(steps[-1]),
            "memory_mib": memory.round(1).tolist(),
            "memory_grows": round(float(memory[-1] / memory[0] - 1), 4),
            "memory_spread": round(float(memory.max() / memory.min() - 1), 4),
            "mapped_mib": round(float(mapped[-1] / 1024), 1),
            "updates_per_processor_second": rate.round(2).tolist(),
            "rate_changes": round(float(rate[-1] / rate[0] - 1), 4),
            "rate_spread": round(float(rate.max() / rate.min() - 1), 4),
        },
        options,
    )


if __name__ == "__main__":
    main()
