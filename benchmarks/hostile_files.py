"""Damaged and hostile files: whether every one is refused or recovered from, and none runs code.

    python benchmarks/hostile_files.py

A tiny agent is trained on CartPole for real. Its checkpoints, store, configuration and tables are damaged and forged
in the ways that hostile_cases.py and hostile_stores.py beside this file list, and given to the real command line,
each in a process of its own with a limit of memory and of time. What a case comes to is one of: refused (exit code 2,
one line on stderr, no traceback), recovered (the run went on with what is whole, and said so), harmless (it ran, and
nothing was wrong with that); or unnoticed (it ran although bytes were damaged), crashed, hung, ran code, wrote
elsewhere. Code that a file smuggles in would touch a file, which is looked for after every case, and so would a
module beside the run's folder that checkpoints name. Bar: at least 500 cases, and only the first three outcomes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import hostile_cases
import hostile_stores
import numpy as np
import report
import smoke
import torch
import yaml
from hostile_cases import AGENT, COMMANDS, EVIL, Bench, Case

from pipelines import cli

GOOD = ("refused", "recovered", "harmless")
MEMORY = 6 << 30
"""Bytes of address space that a case may have beyond what it starts with."""
SECONDS = 60
SERVER = multiprocessing.get_context("forkserver")
"""Forks the processes: it has imported everything once, and has no threads, which a fork would lose."""
SERVER.set_forkserver_preload(
    [
        f"pipelines.{name}"
        for name in ("cli", "training.cli", "commands.evaluate", "commands.search", "evaluation.report.page")
    ]
)


@dataclass
class Outcome:
    """What a case came to, and what it printed last."""

    kind: str
    name: str
    verdict: str
    said: str
    seconds: float


def prepare(folder: Path) -> Bench:
    """Train the agent in two goes, so that there is a checkpoint before the last."""
    config, run = folder / "agent.yaml", folder / "run"
    config.write_text(yaml.safe_dump(AGENT))
    command = ["fit", "--config", str(config), "--trainer.default_root_dir", str(run)]
    for arguments in (
        command,
        [*command, "--ckpt_path", "last", "--trainer.max_steps", "4"],
        ["evaluate", str(run / "checkpoints" / "last.ckpt"), "--episodes", "1", "--max_steps", "5"],
    ):
        code, said = call(arguments, folder)
        assert code == 0, said
    return Bench(folder, folder.parent / "canary")


def call(arguments: list[str], folder: Path) -> tuple[int | None, str]:
    """Run a command in a process and a folder of its own; return its exit code, None where it hung, and its output."""
    output = folder / "output.txt"
    process = SERVER.Process(target=serve, args=(arguments, folder, output))
    process.start()
    process.join(SECONDS)
    hung = process.exitcode is None
    if hung:
        process.kill()
        process.join()
    said = output.read_text(errors="replace") if output.exists() else ""
    return (None if hung else process.exitcode), said


def serve(arguments: list[str], folder: Path, output: Path) -> None:
    """Be that process."""
    code = 70
    try:
        with output.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        os.environ["WANDB_MODE"] = "disabled"
        os.environ.pop("DREAMCADE_RUN", None)
        torch.set_num_threads(1)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        try:
            cli.main(arguments)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def attempt(case: Case, base: Path, canary: Path) -> Outcome:
    """Make a case's files in a copy of the run, give them to the command line and judge what happened."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(base, folder, dirs_exist_ok=True, symlinks=True)
        (folder / "evil.py").write_text(EVIL.format(canary=canary))
        (folder / "victim").write_text("precious\n")
        case.make(folder)
        code, said = call([*COMMANDS[case.command], *case.arguments], folder)
        lines = [line for line in said.splitlines() if line.startswith("dreamcade: ")]
        told = [line for line in lines if "resuming from" not in line]
        if canary.exists():
            canary.unlink()
            verdict = "ran code"
        elif (folder / "victim").read_text() != "precious\n":
            verdict = "wrote elsewhere"
        elif code is None:
            verdict = "hung"
        elif code == 2 and len(told) == 1 and "Traceback" not in said:
            verdict = "refused"
        elif code == 0:
            recovered = len(lines) > len(told) or "metrics_damaged" in said
            verdict = "recovered" if recovered else "unnoticed" if case.damaged else "harmless"
        else:
            verdict = "crashed"
    last = "\n".join(lines or said.splitlines()[-8:])
    return Outcome(case.kind, case.name, verdict, last[:1500], time.monotonic() - start)


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of where files are damaged")
    parser.add_argument("--only", default="", help="cases whose kind or name begins so; writes no result")
    parser.add_argument("--per_kind", type=int, default=10**9, smoke=1, help="cases of a kind that are tried, at most")
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    kinds: Counter[str] = Counter()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "base").mkdir()
        with contextlib.chdir(folder):
            bench = prepare(folder / "base")
        random = np.random.default_rng(options.seed)
        every = chain(hostile_cases.cases(bench, random), hostile_stores.cases(bench, random))
        for number, case in enumerate(every):
            kinds[case.kind] += 1
            if not f"{case.kind}: {case.name}".startswith(options.only) or kinds[case.kind] > options.per_kind:
                continue
            outcome = attempt(case, bench.base, bench.canary)
            outcomes.append(outcome)
            if options.only or outcome.verdict not in GOOD:
                print(f"{number} {case.kind}: {case.name}: {outcome.verdict} {outcome.seconds:.1f} s\n  {outcome.said}")
            elif len(outcomes) % 50 == 0:
                print(f"{len(outcomes)} cases, {time.monotonic() - start:.0f} s", file=sys.stderr)
    verdicts = {kind: Counter(o.verdict for o in outcomes if o.kind == kind) for kind in {o.kind: 0 for o in outcomes}}
    total = Counter(o.verdict for o in outcomes)
    if options.only:
        print(dict(total))
        return
    report.write(
        "hostile_files",
        {
            "cases": len(outcomes),
            "outcomes": dict(total),
            "kinds": {kind: {"cases": sum(counts.values()), **counts} for kind, counts in verdicts.items()},
            "bad": [[o.kind, o.name, o.verdict, o.said[:200]] for o in outcomes if o.verdict not in GOOD],
            "passed": len(outcomes) >= 500 and all(o.verdict in GOOD for o in outcomes),
            "slowest_seconds": round(max(o.seconds for o in outcomes), 1),
            "seconds": round(time.monotonic() - start),
            "seed": options.seed,
        },
        options,
    )


if __name__ == "__main__":
    main()
