"""World Models on real Atari on two cores: evolved in the dream, evolved in reality, and random play.

    python benchmarks/world_models_atari.py [--seeds 1] [--games Boxing,Pong,Breakout] [--folder FOLDER]

"dream" is `world_models__evolution_small` as its configuration is. "reality", the control, is the same with the same
number of real steps in all: a prefill of as many steps as that of the dream, from which VAE and MDN-RNN learn as often
as in the dream's first round, since their features are what a controller sees; all other real steps judge the
population, an episode of at most as many steps as a dream for each vector. Each run is on one thread, two at a time;
100 evaluation episodes at the end. "random" is 100 episodes of uniformly random play under the same protocol,
"random_held" of random play that holds its actions, as that of the prefill does. Whether a mean is above another is
tested by permutation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import report
import smoke
import training
import yaml
from chance import PERSISTENCE, random_returns
from significance import interval, p_not_above

from datamodules.environments.atari import canonical_game
from pipelines.evaluation.results import Evaluation, human_normalized

EXPERIMENT = "world_models__evolution_small"
EPISODES = 100
REALITY = {"population": 8, "dreams": 1, "generations": 10_000}
"""Of the control: as small a population as may be, since every vector costs real steps; the limit ends it."""


def variants(folder: Path) -> dict[str, str]:
    """Write the configurations of both variants, and return where they are."""
    content = training.settings(EXPERIMENT)
    callbacks = {entry["class_path"].rpartition(".")[2]: entry for entry in content["trainer"]["callbacks"]}
    callbacks["Evaluate"]["init_args"] |= {"every": 0, "final_episodes": EPISODES}
    folder.mkdir(parents=True, exist_ok=True)
    dream = folder / "dream.yaml"
    dream.write_text(yaml.safe_dump(content, sort_keys=False))
    first, later = content["model"]["init_args"]["rounds"]["model_updates"]
    collect = callbacks["Collect"]["init_args"]
    rounds = 1 + (content["trainer"]["max_steps"] - first) // later
    steps = collect["prefill"] + (rounds - 1) * collect["steps_per_round"]
    content["model"]["init_args"]["rounds"]["model_updates"] = first
    content["trainer"] |= {"max_steps": first, "limit_train_batches": first}
    collect["steps_per_round"] = 0
    callbacks["Evolve"]["init_args"] |= {"world": "real", "limit": steps} | REALITY
    reality = folder / "reality.yaml"
    reality.write_text(yaml.safe_dump(content, sort_keys=False))
    return {"dream": str(dream), "reality": str(reality)}


def cell(
    runs: list[training.Run],
    trained: dict[training.Run, list[Evaluation]],
    folder: Path,
    chance: dict[str, list[float]],
) -> dict[str, Any]:
    """Return the figures of one game and variant."""
    returns = [float(value) for run in runs for value in trained[run][-1].returns]
    last = trained[runs[0]][-1]
    return {
        **interval(returns),
        "human_normalized": human_normalized(last.game, float(np.mean(returns))),
        **{f"p_not_above_{name}": p_not_above(returns, played) for name, played in chance.items()},
        "real_steps": last.env_steps,
        "updates": last.updates,
        "minutes": round(max(training.minutes(run, folder) for run in runs), 1),
        "seeds": [round(trained[run][-1].score, 2) for run in runs],
    }


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="runs of every game and variant")
    parser.add_argument("--games", default="Boxing,Pong,Breakout", smoke="Pong", help="games, separated by commas")
    parser.add_argument("--random", type=int, default=EPISODES, smoke=2, help="episodes of random play")
    parser.add_argument("--random_steps", type=int, smoke=20, help="steps of those episodes at most")
    parser.add_folder("runs/world_models_atari")
    options = parser.parse_args()
    folder, games = options.folder.resolve(), [canonical_game(game) for game in options.games.split(",")]
    wanted = {
        (game, variant): [
            training.Run(EXPERIMENT, seed, (f"data.game={game}",), f"{game}_{variant}", config)
            for seed in range(options.seeds)
        ]
        for game in games
        for variant, config in variants(folder).items()
    }
    trained = training.train([run for runs in wanted.values() for run in runs], folder, smoke=options.smoke)
    figures: dict[str, Any] = {}
    for game in games:
        chance = {
            name: random_returns(game, options.random, persistence, options.random_steps)
            for name, persistence in (("random", None), ("random_held", PERSISTENCE))
        }
        figures[game] = {name: interval(played) for name, played in chance.items()}
        for variant in ("dream", "reality"):
            figures[game][variant] = cell(wanted[game, variant], trained, folder, chance)
    report.write("world_models_atari", {"seeds": options.seeds, "episodes": EPISODES, "games": figures}, options)


if __name__ == "__main__":
    main()
