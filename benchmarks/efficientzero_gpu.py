"""EfficientZero on Atari 100k on a GPU: how fast its search and its updates are, what bounds them, and how it plays.

    python benchmarks/efficientzero_gpu.py [--updates 120000] [--minutes 30] [--simulations 50] [--reanalysed 0.99]

"search" is simulations/s of 50 simulations with the experiment's network in bfloat16, step and evaluation launched
kernel by kernel ("eager") and replayed as one CUDA graph ("graphed"), for as many roots as Collect and as Reanalyse
search at a time; "tree_share" is the share of the graphed search's time inside its compiled loops. "parts" are
milliseconds per update by part of the Trainer's loop, in a short run in which the device is waited for at every border.
"run" is `efficientzero__atari` with `trainer/gpu`, of so many updates or minutes: real steps, updates and simulations
per second of the whole run but for its evaluations, the mean of what nvidia-smi says the GPU is in use, and the curve.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import report
import smoke
import torch
import training
import yaml
from search import Stopwatch
from usage import Usage

from modules.imagination import evaluating
from modules.latents.muzero import MuZero
from modules.world_model import Spec
from pipelines.console import CONFIGS
from pipelines.evaluation import results
from pipelines.runs import checkpoints
from pipelines.search import compiled
from pipelines.search.evaluators import NetworkEvaluator
from pipelines.search.graphed import Graphed
from pipelines.search.rules import Puct, Stop
from pipelines.search.search import Search

EXPERIMENT = "efficientzero__atari"
SIMULATIONS, ROOTS = 50, (16, 1518)
PARTS = {
    "draw": r"train_dataloader_next",
    "send": r"batch_to_device",
    "reanalyse": r"Reanalyse.*on_train_batch_start",
    "forward": r"training_step$",
    "backward": r"\.backward$",
    "optimizer": r"optimizer_step$",
    "collect": r"Collect.*on_train_batch_end",
    "all": r"run_training_batch$|run_training_epoch$",
}


def search_rates(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the search on random roots."""
    path = CONFIGS / "experiment" / f"{EXPERIMENT}.yaml"
    named = yaml.safe_load(path.read_text())["model"]
    named["init_args"] |= {"size": "debug"} if options.smoke else {}
    model: MuZero = checkpoints.instantiate(MuZero, named, path)
    model.build_from(Spec((3, 96, 96), 4, 6))
    model.to(device)
    evaluate = NetworkEvaluator(model, model.policy)
    expands = {"eager": None, "graphed": Graphed(model, evaluate)}
    search, inside = Search(Puct(), Stop(options.search_simulations)), Stopwatch()
    entry = compiled.entry
    compiled.entry = lambda loop: inside.timed(entry(loop))  # type: ignore[assignment]
    figures: dict[str, Any] = {}
    with evaluating(model), torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        for roots in options.roots:
            frames = torch.randint(0, 256, (roots, 12, 96, 96), dtype=torch.uint8, device=device)
            states = model.networks.represent(frames)
            cell: dict[str, Any] = {}
            for name, expand in expands.items():
                seconds, shares = [], []
                for _ in range(options.repeats + 1):
                    inside.seconds, begin = 0.0, time.perf_counter()
                    search.run(states, model, evaluate, expand=expand)
                    seconds.append(time.perf_counter() - begin)
                    shares.append(inside.seconds / seconds[-1])
                cell[name] = round(roots * options.search_simulations / float(np.median(seconds[1:])))
                cell["tree_share"] = round(float(np.median(shares[1:])), 4)
            figures[str(roots)] = cell
    compiled.entry = entry
    return figures


def configuration(options: argparse.Namespace) -> Path:
    """Write the experiment with what the options change, and return where it is."""
    content = yaml.safe_load((CONFIGS / "experiment" / f"{EXPERIMENT}.yaml").read_text())
    callbacks = {
        entry["class_path"].rpartition(".")[2]: entry["init_args"] for entry in content["trainer"]["callbacks+"]
    }
    for arguments in callbacks.values():
        search = arguments.get("search") or arguments["actor"]["init_args"]["search"]
        search["init_args"]["stop"]["simulations"] = options.simulations
    callbacks["Evaluate"] |= {"every": options.evaluate_every, "final_episodes": options.episodes}
    callbacks["Reanalyse"]["fraction"] = options.reanalysed
    path = options.folder / "experiment.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def fit(folder: Path, config: Path, settings: list[str]) -> float:
    """Run the experiment, and return its seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pipelines.cli", "fit", "--config", str(config)]
    if torch.cuda.is_available():
        command += ["--config", str(CONFIGS / "trainer" / "gpu.yaml")]
    command += [f"--{setting}" for setting in (*settings, f"trainer.default_root_dir={folder}")]
    begin = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        code = subprocess.run(command, env=training.environment(), stdout=log, stderr=log).returncode
    if code:
        raise SystemExit(f"{folder} failed with exit code {code}: see {folder / 'log.txt'}")
    return time.perf_counter() - begin


def parts(folder: Path, config: Path, settings: list[str], updates: int) -> dict[str, float]:
    """Return milliseconds per update of every part."""
    profiler = "trainer.profiler"
    length = [
        f"trainer.max_steps={updates}",
        f"trainer.limit_train_batches={updates}",
        "trainer.max_time=00:00:02:00",
    ]
    kept = [f"{profiler}=synced_profiler.SyncedProfiler", f"{profiler}.dirpath={folder}", f"{profiler}.filename=parts"]
    fit(folder, config, [*settings, *length, *kept])
    found: dict[str, float] = {}
    for line in (folder / "fit-parts.txt").read_text().splitlines():
        columns = [column.strip() for column in line.strip("|").split("|")]
        for name, pattern in PARTS.items():
            if len(columns) > 3 and re.search(pattern, columns[0]):
                found[name] = max(found.get(name, 0.0), float(columns[3]))
    return {name: round(1000 * seconds / updates, 2) for name, seconds in found.items()}


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--game", default="Pong", help="game that is played")
    parser.add_argument("--updates", type=int, default=120_000, smoke=4, help="updates after which the run ends")
    parser.add_argument("--minutes", type=float, default=30.0, help="minutes after which the run ends")
    parser.add_argument("--simulations", type=int, default=SIMULATIONS, smoke=2, help="simulations of the run")
    parser.add_argument("--search_simulations", type=int, default=SIMULATIONS, smoke=2, help='simulations of "search"')
    parser.add_argument("--roots", type=int, nargs="+", default=ROOTS, smoke=(2, 4), help='roots of "search"')
    parser.add_argument("--repeats", type=int, default=5, smoke=1, help='repeats of "search"')
    parser.add_argument("--profiled", type=int, default=40, smoke=2, help='updates of "parts"')
    parser.add_argument(
        "--reanalysed", type=float, default=0.99, help="fraction of a batch's windows that are searched anew"
    )
    parser.add_argument("--episodes", type=int, default=100, smoke=2, help="episodes at the end")
    parser.add_argument("--evaluate-every", type=int, default=10_000, help="updates between two evaluations")
    parser.add_folder("runs/efficientzero_gpu")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="argument passed on to `dreamcade fit`")
    options = parser.parse_args()
    options.folder = folder = options.folder.resolve()
    config, settings = configuration(options), [f"data.game={options.game}", *options.settings]
    if options.smoke:
        settings += ["config=configs/debug.yaml"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures: dict[str, Any] = {"game": options.game, "search": search_rates(device, options)}
    print(json.dumps(figures), flush=True)
    figures["parts"] = parts(folder / "parts", config, settings, options.profiled)
    print(json.dumps(figures["parts"]), flush=True)
    usage, limit = Usage(), round(60 * options.minutes)
    length = [f"trainer.max_steps={options.updates}", f"trainer.limit_train_batches={min(options.updates, 1000)}"]
    length.append(f"trainer.max_time=00:{limit // 3600:02}:{limit // 60 % 60:02}:{limit % 60:02}")
    seconds = fit(folder / "run", config, [*settings, *length])
    used = usage.stop()
    evaluations = results.read(folder / "run")
    last = evaluations[-1]
    figures["run"] = {
        "settings": options.settings,
        "simulations": options.simulations,
        "reanalysed": options.reanalysed,
        "real_steps": last.env_steps,
        "updates": last.updates,
        "minutes": round(seconds / 60, 1),
        "gpu_use_percent": used["gpu_use_percent"],
        "curve": [[each.env_steps, round(float(np.mean(each.returns)), 2)] for each in evaluations],
        "collected": collected(folder / "run" / "metrics.csv"),
    }
    report.write("efficientzero_gpu", figures, options)


def collected(path: Path) -> list[list[float]]:
    """Return what training episodes earned, [update, mean return] of twenty parts of the run."""
    header, *lines = path.read_text().splitlines()
    names = header.split(",")
    if "collect/return" not in names:
        return []
    step, column = names.index("step"), names.index("collect/return")
    rows = [line.split(",") for line in lines]
    found = [(int(row[step]), float(row[column])) for row in rows if row[column]]
    chunks = np.array_split(np.array(found), min(20, len(found)))
    return [[round(float(value), 2) for value in chunk.mean(axis=0)] for chunk in chunks]


if __name__ == "__main__":
    main()
