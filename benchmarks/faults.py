"""Runs that are killed at random moments and taken up again: do they end where they would have ended?

    python benchmarks/faults.py [--kills 20] [--experiment dqn_cartpole] [--updates 3000] [--folder FOLDER]

One run is left alone. Others, of the same command, get SIGKILL, and are taken up again by `--ckpt_path last`: a fifth
at a moment of their last evaluation, the others up to a fifth of a second after a row that is drawn uniformly from
all, while they play, learn, write rows or a checkpoint. "resumed" counts those that went on to the end; "rows_lost" the
rows of their stores that are not those of the run left alone, or that a killed process left damaged; "differ" the runs
whose weights, optimizer or evaluations are not the same to the bit.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import report
import smoke
import torch
import training

from datamodules.replay.store import ReplayStore
from modules.errors import UserError
from pipelines.evaluation import results
from pipelines.runs import checkpoints


def start(experiment: str, updates: int, folder: Path, *more: str) -> subprocess.Popen:
    """Start a run."""
    command = [sys.executable, "-m", "pipelines.cli", "fit", "--config", experiment]
    command += [f"--trainer.max_steps={updates}", f"--trainer.default_root_dir={folder}", *more]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.txt").open("a") as log:
        return subprocess.Popen(
            command, cwd=smoke.ROOT, env=training.environment(), stdout=log, stderr=log, start_new_session=True
        )


def kill(process: subprocess.Popen, folder: Path, row: int, seconds: float) -> bool:
    """Kill a run so long after it wrote a row of every environment; False where it was over before."""
    path = folder / "replay" / "rank0"
    while process.poll() is None:
        if (path / "meta.json").exists() and ReplayStore.open(path, verify=False).rows >= row:
            break
        time.sleep(0.005)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def fingerprint(folder: Path) -> str:
    """Return a hash of what a run learned, and of all that its policy earned."""
    checkpoint = checkpoints.read(folder / "checkpoints" / "last.ckpt")
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for each in value:
                add(each)
        elif isinstance(value, torch.Tensor):
            digest.update(value.contiguous().numpy().tobytes())
        else:
            digest.update(repr(value).encode())

    add([checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "env_steps")])
    # Somebody who is killed right after an evaluation repeats it: the later one counts.
    add({each.env_steps: [dict(episode) for episode in each.episodes] for each in results.read(folder)})
    return digest.hexdigest()


def rows(folder: Path) -> tuple[np.ndarray, int]:
    """Return a hash of every row of a run's store, environment by environment, and how many there are."""
    store = ReplayStore.open(folder / "replay" / "rank0")
    envs, held = np.arange(store.num_envs), store.rows - store.oldest
    batch = store.gather(envs, np.full(store.num_envs, store.oldest), held)
    hashes = [
        hashlib.sha256(b"".join(tensor[env, row].numpy().tobytes() for tensor in batch.tensors())).hexdigest()
        for env in envs
        for row in range(held)
    ]
    store.close()
    return np.array(hashes), len(hashes)


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--kills", type=int, default=20, smoke=1, help="runs that are killed")
    parser.add_argument("--experiment", default="dqn_cartpole", help="experiment that runs")
    parser.add_argument("--updates", type=int, default=3000, smoke=50, help="updates of a run")
    parser.add_argument("--folder", type=Path, help="folder of the runs, which are kept; a temporary one unless given")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    begin = time.monotonic()
    if start(options.experiment, options.updates, folder / "alone").wait():
        raise SystemExit(f"the run left alone failed: see {folder / 'alone.txt'}")
    duration = time.monotonic() - begin
    wanted, (wanted_rows, num_rows) = fingerprint(folder / "alone"), rows(folder / "alone")
    last_row = ReplayStore.open(folder / "alone" / "replay" / "rank0", verify=False).rows
    source = np.random.default_rng(0)
    resumed = lost = differ = 0
    moments: dict[str, int] = {}
    for number in range(options.kills):
        run = folder / f"killed{number}"
        late = number % 5 == 4
        row = last_row if late else int(source.integers(last_row))
        killed = kill(start(options.experiment, options.updates, run), run, row, source.uniform(0, 1 if late else 0.2))
        moment = "evaluating" if late else "with a checkpoint"
        if not (run / "checkpoints").exists():
            moment = "before the first checkpoint"
        moment = moment if killed else "over before"
        moments[moment] = moments.get(moment, 0) + 1
        try:
            if (run / "replay" / "rank0" / "meta.json").exists():
                rows(run)
        except UserError:
            lost += 1
        going_on = ["--ckpt_path=last"] if (run / "replay").exists() or (run / "checkpoints").exists() else []
        if start(options.experiment, options.updates, run, *going_on).wait() == 0:
            resumed += 1
            found, _ = rows(run)
            lost += num_rows - int((found == wanted_rows).sum()) if len(found) == num_rows else num_rows
            differ += fingerprint(run) != wanted
        print(f"kill {number}: {moment}; resumed {resumed}, rows lost {lost}, differ {differ}", flush=True)
        if not options.folder:
            shutil.rmtree(run)
    if not options.folder:
        shutil.rmtree(folder)
    report.write(
        "faults",
        {
            "kills": options.kills, "resumed": resumed, "rows_lost": lost, "differ": differ, "moments": moments,
            "experiment": options.experiment, "updates": options.updates, "rows": num_rows,
            "seconds_alone": round(duration, 1),
        },
        options,
    )  # fmt: skip


if __name__ == "__main__":
    main()
