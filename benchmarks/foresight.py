"""How well world models foresee rewards and ends, by game, from 8,000 real steps of random play.

    python benchmarks/foresight.py [--models unet,stochastic_unet] [--games Freeway,Krull] [--folder runs/foresight]

Each model trains on one thread, and then dreams from every row of as many held-out steps, under the actions that were
really taken, after a few observed rows. Rewards and ends are judged at single steps ahead, and sums of rewards over the
first 5 steps. Play is uniformly random; in Freeway, where that never earns anything, it holds its actions. "clocked" is
the share of rewards that come a multiple of 16 steps after the one before, as if a hidden clock gave them; 1/16 is
chance. A model and game that the result file holds are skipped; the file is written after each.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import report
import smoke
import training

from datamodules.environments.atari import canonical_game
from datamodules.replay.store import ReplayStore
from modules.world_model import WorldModel
from pipelines.dreams.foresight import Foreseen, foresee, judge
from pipelines.runs import checkpoints

GAMES = "Freeway,KungFuMaster,UpNDown,Krull"
HORIZONS = (1, 2, 3, 5)
LAST = max(HORIZONS)
RANDOM = "pipelines.acting.play.RandomPlay"
CLOCK = 16
"""Steps of the period that "clocked" looks for."""
PERSISTENCE = {"freeway": 1.5}
"""Exponent of how long random play holds an action, by game; other games draw a new action at every step."""


class Model(NamedTuple):
    """A world model that is measured."""

    config: str
    """Its configuration."""
    settings: tuple[str, ...] = ()
    """KEY=VALUE arguments of `dreamcade fit`."""
    context: int = 4
    """Rows that it observes before it dreams."""


ALONE = tuple(f"callbacks.{name}=null" for name in ("Evolve", "Evaluate", "LatentPictures"))
MODELS = {
    "unet": Model("unet_small"),
    "stochastic_unet": Model(
        "unet_small", ("model=modules.frames.stochastic_unet.StochasticUNet", "model.bits.number=32")
    ),
    "mdn_rnn": Model(
        "world_models__evolution_small",
        (
            *ALONE,
            "model.world_model.vae_updates=2000",
            "model.rounds.model_updates=4000",
            "trainer.max_steps=4000",
            "trainer.limit_train_batches=4000",
            "callbacks.Collect.prefill=8000",
            "callbacks.Collect.steps_per_round=0",
        ),
        context=16,
    ),
}
DATA = ("data.envs.training=8", "data.envs.validation=8")
UNMEASURED = ("callbacks.PredictionReport=null", "callbacks.DreamVideo=null")


def train(name: str, game: str, options: Any, folder: Path) -> float:
    """Train a model on a game, unless the folder holds the run; return the minutes of a core that it took."""
    model = MODELS[name]
    if not (folder / "minutes.txt").exists():
        exploration = f"{{persistence: {PERSISTENCE.get(game, 'null')}}}"
        play = f"callbacks.Collect.prefill_actor={{class_path: {RANDOM}, init_args: {{exploration: {exploration}}}}}"
        settings = [*DATA, *UNMEASURED, play, f"data.game={game}", *model.settings, *options.settings]
        command = [sys.executable, "-m", "pipelines.cli", "fit", "--config", model.config]
        command += [f"--seed_everything={options.seed}", *(f"--{setting}" for setting in settings)]
        command += smoke.DEBUG if options.smoke else []
        command.append(f"--trainer.default_root_dir={folder}")
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            process = subprocess.Popen(command, cwd=smoke.ROOT, env=training.environment(), stdout=log, stderr=log)
            _, status, used = os.wait4(process.pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            raise SystemExit(f"{folder} failed with exit code {code}: see {folder / 'log.txt'}")
        (folder / "minutes.txt").write_text(f"{(used.ru_utime + used.ru_stime) / 60:.2f}\n")
    return float((folder / "minutes.txt").read_text())


def dreamed(model: WorldModel, store: ReplayStore, frame_stack: int, context: int) -> Foreseen:
    """Dream from every held-out row."""
    env, start = store.windows(context + LAST, "validation")
    parts = []
    for some in np.array_split(np.arange(len(env)), max(1, len(env) // 256)):
        windows = store.gather(env[some], start[some], context + LAST, frame_stack)
        parts.append(foresee(model, windows[~windows.is_last[:, context - 1]], context))
    return Foreseen.concatenate(parts)


def clocked(store: ReplayStore) -> float:
    """Return the share of held-out rewards that come a multiple of CLOCK steps after the last one of their episode."""
    rows = range(store.oldest, store.rows)
    columns = store.columns(rows, store.select("validation"))
    on, total = 0, 0
    for reward, is_first in zip(columns["reward"], columns["is_first"], strict=True):
        episode = is_first.cumsum()
        (row,) = reward.nonzero()
        gaps = np.diff(row)[np.diff(episode[row]) == 0]
        on, total = on + int((gaps % CLOCK == 0).sum()), total + len(gaps)
    return on / total if total else math.nan


def measure(name: str, game: str, options: Any, folder: Path) -> dict[str, Any]:
    """Train and judge a model on a game."""
    minutes = train(name, game, options, folder)
    learner, checkpoint = checkpoints.load(folder / "checkpoints" / "last.ckpt")
    store = ReplayStore.open(folder / "replay" / "rank0", verify=False)
    real = store.rows * (store.num_envs - store.num_validation_envs)
    assert learner.spec is not None
    found = dreamed(learner.world_model, store, learner.spec.frame_stack, MODELS[name].context)
    horizons = {str(h): rounded(judge(found, slice(h - 1, h))) for h in HORIZONS}
    sums = judge(found, slice(LAST))
    clock = clocked(store)
    store.close()
    first, last = horizons["1"], horizons[str(LAST)]
    ratio = sums["reward_sum"] / sums["reward_real_sum"] if sums["reward_real_sum"] else math.nan
    bars = {
        "auc_at_1": at_least(first["reward_auc"], 0.9),
        f"auc_at_{LAST}": at_least(last["reward_auc"], 0.8),
        "p_event_at_1": at_least(first["reward_p_event"], 0.3),
        f"sum_over_{LAST}": 0.8 <= ratio <= 1.2,
    }
    return {
        "minutes": round(minutes, 1),
        "updates": checkpoint["global_step"],
        "real_steps": real,
        "persistence": PERSISTENCE.get(game),
        "bars": bars,
        f"sum_over_{LAST}": number(ratio),
        "clocked": number(clock),
        "horizons": horizons,
        "commit": report.provenance()["commit"],
    }


def at_least(value: float | None, bound: float) -> bool:
    """Return whether a value that may be missing reaches a bound."""
    return value is not None and value >= bound


def rounded(measures: dict[str, float]) -> dict[str, Any]:
    """Return measures for a file."""
    return {name: number(value) for name, value in measures.items()}


def number(value: float) -> Any:
    """Return a number for a file; None where there was nothing to measure."""
    return None if math.isnan(value) else round(value, 4)


def table(models: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table: a row per model and game."""
    lines = [
        "| model | game | events | AUC at 1 | at 5 | AP at 1 / base | P at events / elsewhere | ECE | sum over 5 | "
        "AUC of ends at 1 | minutes |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, games in models.items():
        for game, figures in games.items():
            first, last = figures["horizons"]["1"], figures["horizons"][str(LAST)]
            cells = [
                name, game, first["rewards"], first["reward_auc"], last["reward_auc"],
                f"{first['reward_ap']} / {first['reward_base']}",
                f"{first['reward_p_event']} / {first['reward_p_other']}", first["reward_ece"],
                figures[f"sum_over_{LAST}"], first["termination_auc"], figures["minutes"],
            ]  # fmt: skip
            lines.append(f"| {' | '.join('-' if cell is None else str(cell) for cell in cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="models, separated by commas")
    parser.add_argument("--games", default=GAMES, smoke="Freeway", help="games, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="argument passed on to `dreamcade fit`",
    )  # fmt: skip
    parser.add_folder("runs/foresight")
    options = parser.parse_args()
    models: dict[str, dict[str, Any]] = report.read("foresight", options).get("models", {})
    for name in options.models.split(","):
        for game in (canonical_game(each) for each in options.games.split(",")):
            if game not in models.setdefault(name, {}):
                models[name][game] = measure(name, game, options, (options.folder / name / game).resolve())
                report.write("foresight", {"models": models}, options, echo=False)
    print(table(models))
    report.write("foresight", {"models": models}, options)


if __name__ == "__main__":
    main()
