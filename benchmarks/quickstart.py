"""The quickstart as `make demo` runs it: minutes, memory, and how far its dreams can be trusted.

    python benchmarks/quickstart.py [--seed 1] [--folder runs/mine] [--keep docs/images]

Time is that of the whole command, from the start of Python to the last picture. Memory is the peak of the resident
memory of all its processes together, looked at twice a second; pages that several of them share count in each. The
dreams' figures are those that the run itself writes: of held-out episodes, open loop, beside a copy of the last frame.
Results of other seeds and of changed settings go to files of their own.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import report
import smoke

from pipelines.dreams.foresight import FORESIGHT_COLUMNS
from pipelines.runs import checkpoints

HORIZONS = (*range(1, 11), 15, 25, 50)
COLUMNS = (
    "psnr", "copy_psnr", "ssim", "copy_ssim", "changed", "copy_changed", "either", "copy_either",
    *FORESIGHT_COLUMNS,
)  # fmt: skip
PICTURES = ("dream.gif", "dream.mp4", "dream.png", "predictions.png")
LOOK_SECONDS = 0.5


def measure(folder: Path, seed: int, settings: list[str], keep: Path | None = None) -> dict[str, Any]:
    """Run the quickstart and return its figures.

    Args:
        folder: of the run; it must not hold one already.
        seed: of everything.
        settings: further KEY=VALUE arguments of `dreamcade fit`; later ones win.
        keep: folder that the pictures are copied to.
    """
    command = ["-m", "pipelines.cli", "fit", "--config", "configs/quickstart.yaml"]
    command += [f"--seed_everything={seed}", *(f"--{setting}" for setting in settings)]
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command, f"--trainer.default_root_dir={folder}"], cwd=smoke.ROOT)
    peak = watch(process)
    minutes = (time.perf_counter() - begin) / 60
    if process.returncode:
        raise SystemExit(f"the run failed with exit code {process.returncode}: python {' '.join(command)}")
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        for name in PICTURES:
            shutil.copy(folder / name, keep / name)
    return {
        "minutes": round(minutes, 2),
        "peak_rss_gib": round(peak / 2**30, 2),
        **facts(folder),
        "settings": settings,
        **dreams(folder),
    }


def watch(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; return the peak of the resident bytes of it and all that descend from it."""
    peak = 0
    try:
        while True:
            peak = max(peak, resident(process.pid))
            try:
                process.wait(LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            return peak
    except BaseException:
        process.terminate()
        process.wait()
        raise


def resident(root: int) -> int:
    """Return the resident bytes of a process and its descendants."""
    children: dict[int, list[int]] = {}
    pages: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in brackets, may hold anything: what follows the last bracket is state, parent, ...
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        children.setdefault(int(fields[1]), []).append(int(path.name))
        pages[int(path.name)] = int(fields[21])
    total, todo = 0, [root]
    while todo:
        each = todo.pop()
        total += pages.get(each, 0)
        todo += children.get(each, [])
    return total * os.sysconf("SC_PAGE_SIZE")


def facts(folder: Path) -> dict[str, Any]:
    """Return what was run, as its last checkpoint has it."""
    checkpoint = checkpoints.read(folder / "checkpoints" / "last.ckpt")
    config = checkpoint["config"]
    data = config["data"]["init_args"]
    rows = sum(rank["rows"] for rank in checkpoint["AtariReplay"]["ranks"])
    return {
        "game": data["game"],
        "protocol": data["protocol"],
        "seed": config["seed_everything"],
        "env_steps": rows * data["envs"]["training"],
        "held_out_env_steps": rows * data["envs"]["validation"],
        "updates": checkpoint["global_step"],
    }


def dreams(folder: Path) -> dict[str, Any]:
    """Return what the run measured of its dreams, per horizon, beside a copy of the last frame.

    To be better than the copy by a hair is no feat: the worst ratio of the errors says by how much.
    """
    with (folder / "predictions.csv").open(newline="") as file:
        rows = {int(row["horizon"]): {name: number(row[name]) for name in COLUMNS} for row in csv.DictReader(file)}
    worst = {name: worst_ratio([rows[horizon] for horizon in range(1, 11)], name) for name in ("changed", "either")}
    better = {name: ratio is not None and ratio < 1 for name, ratio in worst.items()}
    return {
        "better_than_copy_1_to_10": all(better.values()),
        **{f"{name}_better_than_copy_1_to_10": each for name, each in better.items()},
        **{f"{name}_vs_copy_worst_1_to_10": ratio for name, ratio in worst.items()},
        "horizons": {str(horizon): rows[horizon] for horizon in HORIZONS if horizon in rows},
    }


def number(text: str) -> float | int | None:
    """Return a number of a CSV file, rounded; None where there was nothing to measure, which JSON has no nan for."""
    value = float(text)
    if math.isnan(value):
        return None
    return int(text) if text.isdigit() else round(value, 6)


def worst_ratio(rows: list[dict[str, Any]], name: str) -> float | None:
    """Return the largest ratio of an error to that of the copy; None unless every row has both."""
    pairs = [(row[name], row[f"copy_{name}"]) for row in rows]
    if any(error is None or not copy for error, copy in pairs):
        return None
    return round(max(error / copy for error, copy in pairs), 4)


def arguments(description: str) -> smoke.Parser:
    """Return the options of every benchmark that runs the quickstart."""
    parser = smoke.Parser(description)
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    parser.add_argument("--folder", type=Path, help="folder of the run, which is kept; a temporary one unless given")
    parser.add_argument("--keep", type=Path, smoke=Path("images"), help="folder that the pictures are copied to")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        smoke=["config=configs/debug.yaml"], help="argument passed on to `dreamcade fit`",
    )  # fmt: skip
    return parser


def result_name(name: str, options: argparse.Namespace) -> str:
    """Return where figures go: what the README quotes is seed 0 with nothing changed."""
    if options.smoke:
        return name
    return name + (f"_seed{options.seed}" if options.seed else "") + ("_changed" if options.settings else "")


def main() -> None:
    options = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary) / "run").resolve()
        figures = measure(folder, options.seed, options.settings, options.keep)
    report.write(result_name("quickstart", options), figures, options)


if __name__ == "__main__":
    main()
