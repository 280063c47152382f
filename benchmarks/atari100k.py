"""Atari 100k on a GPU, in pieces that fit a time limit: trains, goes on where it was stopped, and evaluates at the end.

    python benchmarks/atari100k.py --agent efficientzero --game Pong --minutes 9

Every call is one piece. It goes on with the run in `--folder`, stops it by SIGTERM in time for a checkpoint, and says
what is left. When all updates are made, pieces play evaluation episodes, a few at a time. The result file keeps every
piece with its minutes, card, memory and GPU use, the curve, and the returns of the final episodes. Use several calls on
one machine, or keep the folder. In the games of docs/records.md the result says the minutes to the record's score; the
time between two pieces does not count.
"""

from __future__ import annotations

import json
import signal
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
from usage import Usage

from datamodules.environments.atari import canonical_game
from pipelines.console import CONFIGS, fail
from pipelines.evaluation import results
from pipelines.evaluation.results import Evaluation, human_normalized
from pipelines.machine.provenance import now
from pipelines.runs import checkpoint_files
from pipelines.runs.checkpoint_files import LAST

AGENTS = {
    "efficientzero": ("efficientzero__atari", ()),
    "gumbel": ("gumbel_muzero__atari", ()),
    "bbf": ("bbf", ()),
    "bbf_without_model": ("bbf", ("model.policy.init_args.self_prediction=null",)),
}
"""Configuration of every agent, and its changes."""
RESERVE = 0.75
"""Minutes that a run has for its last update and checkpoint, after it was told to stop."""


def cli(command: str, arguments: list[str], log: Path, minutes: float) -> None:
    """Run a command of dreamcade for so many minutes at most; a run that is told to stop writes a checkpoint."""
    with log.open("a") as file:
        words = [sys.executable, "-m", "pipelines.cli", command, *arguments]
        process = subprocess.Popen(words, env=training.environment(), stdout=file, stderr=file)
        try:
            process.wait(60 * max(0.1, minutes))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait()
    if process.returncode not in (0, -signal.SIGTERM):
        fail(f"{command} failed with exit code {process.returncode}: see {log}")


def updates_of(run: Path) -> int:
    """Return the number of updates in a run's last checkpoint; 0 without one."""
    path = run / "checkpoints" / LAST
    return int(checkpoint_files.read(path)["global_step"]) if path.exists() else 0


def train(run: Path, agent: str, game: str, seed: int, options: Any) -> None:
    """Begin a run, or go on with it, for one piece."""
    experiment, changes = AGENTS[agent]
    arguments = ["--config", experiment]
    if torch.cuda.is_available():
        arguments += ["--config", str(CONFIGS / "trainer" / "gpu.yaml")]
    arguments.append(f"--callbacks.Evaluate.episodes={training.RECORD_EPISODES}")
    arguments += smoke.DEBUG if options.smoke else []
    arguments += [f"--{change}" for change in (f"data.game={game}", f"seed_everything={seed}", *changes)]
    arguments += [f"--trainer.default_root_dir={run}", "--callbacks.Evaluate.final_episodes=1"]
    arguments += ["--ckpt_path=last"] if (run / "checkpoints").exists() else []
    if options.smoke:
        arguments.append(f"--trainer.max_steps={options.updates}")
    cli("fit", arguments, run / "log.txt", options.minutes - RESERVE)


def evaluations_of(folder: Path) -> list[Evaluation]:
    """Return the evaluations in a folder, which may have none."""
    return results.read(folder) if (folder / results.FILE).exists() else []


def returns_of(run: Path) -> list[float]:
    """Return the returns of the final episodes that were played so far."""
    return [float(value) for evaluation in evaluations_of(run / "final") for value in evaluation.returns]


def curve(
    evaluations: list[Evaluation], begun: str, earlier: float, minutes: list[float | None]
) -> dict[str, list[Any]]:
    """Return the curve of a run after a piece.

    Args:
        evaluations: evaluations of all pieces.
        begun: date at which this piece began.
        earlier: minutes of the pieces before it.
        minutes: minutes of the evaluations of the pieces before it.
    """
    found = training.curve(evaluations, begun)
    new = [each and round(earlier + each, 2) for each in found["curve_minutes"][len(minutes) :]]
    return found | {"curve_minutes": minutes + new}


def records(runs: dict[str, Any]) -> dict[str, float | None]:
    """Return the minutes to the record's score, by agent and game."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, cell in sorted(runs.items()):
        groups.setdefault(name.rpartition("/")[0], []).append(cell)
    return {
        name: training.minutes_to_record(game, cells)
        for name, cells in groups.items()
        if (game := name.rpartition("/")[2]) in training.RECORDS
    }


def evaluate(run: Path, options: Any, begin: float) -> None:
    """Play final episodes, a few at a time, until all are played or the time is over."""
    longest = 0.0
    while (done := len(returns_of(run))) < options.episodes:
        since = time.monotonic()
        if since - begin + longest > 60 * options.minutes:
            return
        number = min(options.at_a_time, options.episodes - done)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        arguments = [str(run / "checkpoints" / LAST), "--episodes", str(number), "--seed", str(1000 + done)]
        arguments += ["--device", device, "--out", str(run / "final")]
        arguments += ["--max_steps", str(options.max_steps)] if options.max_steps else []
        cli("evaluate", arguments, run / "log.txt", float("inf"))
        longest = max(longest, time.monotonic() - since)


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--agent", default="efficientzero", help=f"agent that is trained: {', '.join(AGENTS)}")
    parser.add_argument("--game", default="Pong", help="game that is played")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    parser.add_argument("--minutes", type=float, default=9.0, help="minutes of this piece")
    parser.add_argument("--episodes", type=int, default=100, smoke=2, help="evaluation episodes at the end")
    parser.add_argument("--at_a_time", type=int, default=25, smoke=1, help="evaluation episodes between two checks")
    parser.add_argument("--max_steps", type=int, smoke=20, help="steps of an evaluation episode at most")
    parser.add_argument("--updates", type=int, smoke=4, help="updates of a smoke run")
    parser.add_folder("runs/atari100k")
    options = parser.parse_args()
    if options.agent not in AGENTS:
        fail(f"--agent: there is no {options.agent}, there are {', '.join(AGENTS)}")
    begin, begun, usage = time.monotonic(), now(), Usage()
    game = canonical_game(options.game)
    name = f"{options.agent}/{game}/{options.seed}"
    run = options.folder.resolve() / name
    run.mkdir(parents=True, exist_ok=True)
    total = options.updates or training.settings(AGENTS[options.agent][0])["trainer"]["max_steps"]
    before, played, known = updates_of(run), len(returns_of(run)), len(evaluations_of(run))
    if before < total:
        train(run, options.agent, game, options.seed, options)
    after = updates_of(run)
    if after == total:
        evaluate(run, options, begin)
    minutes = (time.monotonic() - begin) / 60
    machine = report.provenance()
    runs: dict[str, Any] = report.read("atari100k", options).get("runs", {})
    cell = runs.setdefault(name, {"pieces": []})
    earlier = sum(piece["minutes"] for piece in cell["pieces"])
    returns = returns_of(run)
    cell["pieces"].append({
        "updates": after - before,
        "episodes": len(returns) - played,
        "minutes": round(minutes, 2),
        "card": machine["machine"]["gpu"],
        **usage.stop(),
        "commit": machine["commit"],
    })  # fmt: skip
    cell |= curve(evaluations_of(run), begun, earlier, [*cell.get("curve_minutes", []), *[None] * known][:known])
    cell["returns"] = returns
    cell["mean"] = round(float(np.mean(returns)), 2) if returns else None
    cell["human_normalized"] = human_normalized(game, cell["mean"]) if returns else None
    cell["minutes"] = round(sum(piece["minutes"] for piece in cell["pieces"]), 1)
    rate = (after - before) / minutes
    left = {
        "updates": total - after,
        "minutes": round((total - after) / rate, 1) if rate else None,
        "episodes": options.episodes - len(returns),
    }
    cell["left"] = left
    report.write("atari100k", {"runs": runs, "minutes_to_record": records(runs)}, options)
    if any(left[key] for key in ("updates", "episodes")):
        print(json.dumps({"left": left}), file=sys.stderr)


if __name__ == "__main__":
    main()
