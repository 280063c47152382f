"""Does it play? Agents on real Atari on two cores, each beside three kinds of chance and a model-free control.

    python benchmarks/atari_laptop.py [--games Krull,UpNDown] [--agents control,dyna_q] [--seeds 3] [--minutes 170]

Runs every agent as its configuration is, with as many seeds, one thread each, two at a time, and lets it play 30 whole
evaluation episodes at the end. The three kinds of chance are those of chance.py: uniform random play, random play that
holds its actions, and the best constant action. An agent is above chance if the mean of its episodes is above each of
the three, p < .01 by permutation. The result file is written after every run. `--resume` keeps the runs that it holds;
`--minutes` begins no further run after so long. So a measurement can be spread over days: all runs of an agent in a
game must be of one commit. In the games of docs/records.md the result says the minutes to the record's score.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import report
import smoke
import training
from chance import KINDS, chance_of
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from significance import interval, p_not_above

from datamodules.environments.atari import canonical_game
from pipelines.acting.play import Play
from pipelines.console import fail
from pipelines.display.films import enlarge, write_film
from pipelines.evaluation.episodes import FILM_FPS, evaluate
from pipelines.evaluation.results import human_normalized
from pipelines.runs import checkpoints

GAMES = "UpNDown,DemonAttack,Krull,Assault,RoadRunner,KungFuMaster"
SIGNIFICANT = 0.01
FILMED = 240
"""Moves of the film: 16 seconds of play."""


class Agent(NamedTuple):
    """A row of the table."""

    experiment: str
    """Configuration."""
    settings: tuple[str, ...] = ()
    """Its changes."""
    without_model: str = ""
    """The same agent without its model, another row."""


AGENTS = {
    "control": Agent("bbf_small", without_model="control_without_model"),
    "control_without_model": Agent("bbf_small", ("model.policy.init_args.self_prediction=null",)),
    "dyna_q": Agent("unet__dyna_q", without_model="control_without_model"),
    "mbpo": Agent("unet__mbpo", without_model="control_without_model"),
    "simple": Agent("simple__mbpo_small"),
    "muzero": Agent("gumbel_muzero__atari_small", without_model="muzero_without_consistency"),
    "muzero_without_consistency": Agent("gumbel_muzero__atari_small", ("model.weights.consistency=0",)),
}
COUNTS = {
    "control_above_chance": ("control",),
    "dyna_above_chance": ("dyna_q",),
    "muzero_above_chance": ("muzero",),
    "mbpo_or_simple_above_chance": ("mbpo", "simple"),
}
"""Figures that count the games in which one of these agents is above chance."""


def run_of(game: str, agent: str, seed: int) -> training.Run:
    """Return the training run of an agent in a game."""
    experiment, settings, _ = AGENTS[agent]
    return training.Run(experiment, seed, (f"data.game={game}", *settings), f"{game}/{agent}")


def measured(run: training.Run, options: Any) -> dict[str, Any]:
    """Train, and return what a run is quoted for."""
    evaluations = training.train([run], options.folder.resolve(), smoke=options.smoke)[run]
    last = evaluations[-1]
    return {
        "returns": [float(value) for value in last.returns],
        "real_steps": last.env_steps,
        "updates": last.updates,
        "minutes": round(training.minutes(run, options.folder.resolve()), 1),
        **training.curve(evaluations, training.begun(run, options.folder.resolve())),
    }


def add_statistics(game: str, found: dict[str, Any]) -> None:
    """Add to every agent of a game what is said about its runs together."""
    for cell in found["agents"].values():
        returns = [value for run in cell["runs"].values() for value in run["returns"]]
        cell |= interval(returns)
        cell["human_normalized"] = human_normalized(game, cell["mean"])
        cell["p_not_above"] = {kind: p_not_above(returns, found["chance"][kind]) for kind in KINDS}
        cell["above_chance"] = max(cell["p_not_above"].values()) < SIGNIFICANT
        if game in training.RECORDS:
            runs = [run for _, run in sorted(cell["runs"].items())]
            cell["minutes_to_record"] = training.minutes_to_record(game, runs)
    for name, cell in found["agents"].items():
        without = found["agents"].get(AGENTS[name].without_model)
        if without is not None:
            with_model, without_model = (
                [value for run in each["runs"].values() for value in run["returns"]] for each in (cell, without)
            )
            cell["p_not_above"]["without_model"] = p_not_above(with_model, without_model)


def counts(games: dict[str, Any]) -> dict[str, int]:
    """Return the figures of the last line: numbers of games."""
    cells = [found["agents"] for found in games.values()]
    above = {
        name: sum(any(each.get(agent, {}).get("above_chance", False) for agent in agents) for each in cells)
        for name, agents in COUNTS.items()
    }
    by_agent = [
        sum(each.get(agent, {}).get("p_not_above", {}).get("without_model", 1.0) < SIGNIFICANT for each in cells)
        for agent in AGENTS
    ]
    return {**above, "model_above_same_without": max(by_agent)}


def draw(games: dict[str, Any], path: Path) -> None:
    """Draw the curves of every game beside the three kinds of chance."""
    columns = min(3, len(games))
    rows = -(-len(games) // columns)
    figure = Figure(figsize=(4.2 * columns, 3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (game, found) in zip(panels, games.items(), strict=False):
        draw_curves(axes, game, found)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def draw_curves(axes: Any, game: str, found: dict[str, Any]) -> None:
    """Draw the curves of one game."""
    for style, kind in zip((":", "-.", "--"), KINDS, strict=True):
        name = f"constant {found['chance']['constant_action']}" if kind == "constant" else kind.replace("_", ", ")
        axes.axhline(np.mean(found["chance"][kind]), color="grey", linestyle=style, linewidth=1, label=name)
    for number, agent in enumerate(AGENTS):
        for index, run in enumerate(found["agents"].get(agent, {"runs": {}})["runs"].values()):
            steps, scores = zip(*run["curve"], strict=True)
            axes.plot(steps, scores, color=f"C{number}", alpha=0.8, label=agent if index == 0 else None)
    axes.set(title=game, xlabel="real steps", ylabel="return")
    axes.legend(fontsize=6)
    axes.grid(alpha=0.3)


def film(run: training.Run, found: dict[str, Any], folder: Path, path: Path) -> None:
    """Film the first evaluation episode of a run, up to FILMED moves, beside the curves of its game."""
    game, _ = run.task.split("/")
    checkpoint = folder / run.task / run.experiment / str(run.seed) / "checkpoints" / "last.ckpt"
    learner, kept = checkpoints.load(checkpoint)
    actor = checkpoints.instantiate(Play, checkpoints.actor(checkpoint, kept), checkpoint)
    with tempfile.TemporaryDirectory() as name:
        evaluate(
            learner, checkpoints.world(checkpoint, kept), 1, 0, actor, max_steps=FILMED, film=Path(name) / "film.mp4",
            show=False, run_seed=run.seed, env_steps=kept["env_steps"], updates=kept["global_step"],
            experiment=run.experiment,
        )  # fmt: skip
        with av.open(str(Path(name) / "film.mp4")) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][::2])
    frames = enlarge(frames, 2)
    height = frames.shape[1]
    figure = Figure(figsize=(1.4 * height / 100, height / 100), dpi=100, layout="constrained")
    draw_curves(figure.subplots(), game, found)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    curves = np.asarray(canvas.buffer_rgba())[None, ..., :3]
    write_film(path, np.concatenate([frames, curves.repeat(len(frames), axis=0)], axis=2), FILM_FPS // 2)


def held(games: dict[str, Any], run: training.Run, commit: str | None) -> bool:
    """Return whether the result file holds a run already; it must be of this commit then."""
    game, agent = run.task.split("/")
    cell = games.get(game, {}).get("agents", {}).get(agent)
    if cell is not None and cell["commit"] != commit:
        fail(
            f"--resume: {agent} in {game} was measured at commit {cell['commit']}, and this is {commit}: go on there, "
            f"or measure it anew without --resume by --games {game} --agents {agent}"
        )
    return cell is not None and str(run.seed) in cell["runs"]


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--games", default=GAMES, smoke="Pong", help="games, separated by commas")
    parser.add_argument("--agents", default=",".join(AGENTS), help=f"agents, separated by commas: {', '.join(AGENTS)}")
    parser.add_argument("--seeds", type=int, default=3, smoke=1, help="runs of every agent in every game")
    parser.add_argument("--resume", action="store_true", help="keep the runs that the result file holds")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many minutes")
    parser.add_argument("--at_a_time", type=int, default=2, help="runs side by side")
    parser.add_argument("--episodes", type=int, default=30, smoke=2, help="episodes of each kind of chance")
    parser.add_argument("--tries", type=int, default=10, smoke=1, help="episodes of every constant action at first")
    parser.add_argument("--max_steps", type=int, smoke=20, help="steps of an episode of chance at most")
    parser.add_argument("--film", smoke="Pong", help="game whose first agent and seed are filmed beside its curves")
    parser.add_folder("runs/atari_laptop")
    options = parser.parse_args()
    names = [canonical_game(game) for game in options.games.split(",")]
    agents = options.agents.split(",")
    if unknown := [agent for agent in agents if agent not in AGENTS]:
        fail(f"--agents: there is no {unknown[0]}, there are {', '.join(AGENTS)}")
    commit = report.provenance()["commit"]
    games: dict[str, Any] = report.read("atari_laptop", options).get("games", {})
    known = report.read("chance", options).get("games", {})
    runs = [run_of(game, agent, seed) for seed in range(options.seeds) for game in names for agent in agents]
    if options.resume:
        runs = [run for run in runs if not held(games, run, commit)]
    begin = time.monotonic()

    def one(run: training.Run) -> dict[str, Any] | None:
        return measured(run, options) if time.monotonic() - begin < 60 * options.minutes else None

    def write(echo: bool = False) -> None:
        report.write("atari_laptop", {"games": games, **counts(games)}, options, echo)

    for game in names:
        found = games.setdefault(game, {"agents": {}})
        if not options.resume:
            found["agents"] = {name: cell for name, cell in found["agents"].items() if name not in agents}
        if not (options.resume and "chance" in found):
            chance = known.get(game) or chance_of(game, options.episodes, options.tries, options.max_steps)
            found["chance"] = {kind: chance[kind] for kind in KINDS} | {"constant_action": chance["constant_action"]}
            write()

    with ThreadPoolExecutor(options.at_a_time) as pool:
        waiting = {pool.submit(one, run): run for run in runs}
        for done in as_completed(waiting):
            run, figures = waiting[done], done.result()
            if figures is not None:
                game, agent = run.task.split("/")
                cell = games[game]["agents"].setdefault(agent, {"commit": commit, "runs": {}})
                cell["runs"][str(run.seed)] = figures
                add_statistics(game, games[game])
                write()
    write(echo=True)
    draw(games, options.images / "atari_laptop.png")
    if options.film:
        game = canonical_game(options.film)
        film(run_of(game, agents[0], 0), games[game], options.folder.resolve(), options.images / "playing.gif")


if __name__ == "__main__":
    main()
