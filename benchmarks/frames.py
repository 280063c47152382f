"""The quickstart on other games, with nothing changed but the game: how far the dreams of each can be trusted.

    python benchmarks/frames.py [--games Breakout,Freeway] [--seed 1] [--keep docs/images]

One game after another; results are written after each. The figures are those of benchmarks/quickstart.py, by game.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import quickstart
import report

GAMES = "Breakout,Freeway,Boxing,MsPacman"
TABLE_HORIZONS = ("1", "5", "10", "25", "50")


def table(games: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table: a row per game and horizon, dream | copy of the last frame."""
    lines = [
        "| game | step | PSNR, dB | SSIM | MSE changed | MSE either | AUC of rewards | AUC of ends |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for game, figures in games.items():
        for horizon in TABLE_HORIZONS:
            row = figures["horizons"].get(horizon)
            if row is None:
                continue
            pairs = [
                f"{shown(row[name], digits)} / {shown(row[f'copy_{name}'], digits)}"
                for name, digits in (("psnr", 1), ("ssim", 3), ("changed", 4), ("either", 4))
            ]
            ranks = [f"{shown(row[f'{event}_auc'], 3)} ({row[f'{event}s']})" for event in ("reward", "termination")]
            lines.append(f"| {' | '.join([game, horizon, *pairs, *ranks])} |")
    return "\n".join([*lines, "", "dream / copy of the last frame; AUC over all steps up to this one (events)"])


def shown(value: float | None, digits: int) -> str:
    """Format a number."""
    return "-" if value is None else f"{value:.{digits}f}"


def main() -> None:
    parser = quickstart.arguments(__doc__)
    parser.add_argument("--games", default=GAMES, smoke="Breakout", help="games, separated by commas")
    options = parser.parse_args()
    name = quickstart.result_name("frames", options)
    games: dict[str, dict[str, Any]] = {}
    wanted = options.games.split(",")
    for game in wanted:
        with tempfile.TemporaryDirectory() as temporary:
            folder = ((options.folder or Path(temporary)) / game).resolve()
            keep = options.keep and options.keep / game
            games[game] = quickstart.measure(folder, options.seed, [*options.settings, f"data.game={game}"], keep)
        last = game == wanted[-1]
        if last:
            print(table(games))
        report.write(name, {"games": games}, options, echo=last)


if __name__ == "__main__":
    main()
