"""The stores, links, configurations and tables among the cases of benchmarks/hostile_files.py."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hostile_cases import STORE, Bench, Case, blank, cut, flip, put

from datamodules.replay import format as replay_format
from datamodules.replay.format import Layout, row_checksum

NAN, INFINITY = float("nan"), float("inf")
NUMBERS: tuple[Any, ...] = (None, -1, 0, True, 1.5, 10**12, 10**30, NAN, INFINITY, "2", [[]], {})
DEEP = "[" * 100_000 + "]" * 100_000


def cases(bench: Bench, random: np.random.Generator) -> Iterator[Case]:
    """Yield every case."""
    yield from damages(random)
    yield from layouts(bench)
    yield from rows()
    yield from links()
    yield from configs(bench.canary)
    yield from evaluations(random)
    yield from metrics(random)


def damages(random: np.random.Generator) -> Iterator[Case]:
    """Damage a file of the store."""
    for name in ("meta.json", "observation.bin", "rows.bin", "head.bin"):
        file = STORE / name
        for part in random.random(4):
            make = lambda f, p=part, n=file: cut(f / n, p)  # noqa: E731
            yield Case("damaged store", f"{name} cut at {part:.4f}", make, "train", damaged=True)
        # Most of a ring that is not full yet is room that holds nothing.
        for part in random.random(5) * (0.4 if name in ("observation.bin", "rows.bin") else 1):
            bit = int(part * 1e6) % 8
            flipped = lambda f, p=part, n=file, b=bit: flip(f / n, p, b)  # noqa: E731
            yield Case("damaged store", f"{name} bit flipped at {part:.4f}", flipped, "train")
            zeroed = lambda f, p=part, n=file: blank(f / n, p, 64)  # noqa: E731
            yield Case("damaged store", f"{name} zeros at {part:.4f}", zeroed, "train")
        yield Case("damaged store", f"{name} missing", lambda f, n=file: (f / n).unlink(), "train", True)


def rewrite(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Return what changes a store's meta.json and its checksum with it."""

    def make(folder: Path) -> None:
        path = folder / STORE / "meta.json"
        content = json.loads(path.read_text())
        del content["checksum"]
        change(content)
        path.write_text(json.dumps({**content, "checksum": replay_format._json_checksum(content)}))

    return make


def layouts(bench: Bench) -> Iterator[Case]:
    """Stores that say of themselves what no store is."""
    content = json.loads((bench.base / STORE / "meta.json").read_text())
    for key in content:
        for number in NUMBERS if key != "checksum" else ():
            change = lambda kept, key=key, number=number: put(kept, (key,), number)  # noqa: E731
            yield Case("absurd stores", f"{key} is {number}", rewrite(change), "train")
        yield Case("absurd stores", f"no {key}", rewrite(lambda kept, key=key: kept.pop(key, None)), "train")
    for key in content["description"]:
        for number in (*NUMBERS[:2], "evil:CartPole-v1"):
            change = lambda kept, key=key, number=number: put(kept, ("description", key), number)  # noqa: E731
            yield Case("absurd stores", f"description.{key} is {number!r}", rewrite(change), "train")
            without = ("--data.id", "null")
            yield Case("absurd stores", f"{key} is {number!r}, no id", rewrite(change), "train", arguments=without)
    for dtype in ("O", "object", "V8", "U8", "S8", "M8[s]", "c16", "f16", "O,O", "(2,)f4", "i8,O", "", "evil.Model"):
        for shape in ([], [10**12]):
            extras = {"extras": {"trap": [dtype, shape]}}
            make = rewrite(lambda kept, extras=extras: kept.update(extras))
            yield Case("absurd stores", f"a column of {dtype} {shape}", make, "train")
    yield Case("pickled code", "a column of objects that points into the file", pointers, "train")
    for name, text in {"deep": DEEP, "an object of lists": f'{{"checksum": 1, "a": {DEEP}}}', "NaN": "NaN"}.items():
        make = lambda folder, text=text: (folder / STORE / "meta.json").write_text(text)  # noqa: E731
        yield Case("absurd stores", f"meta.json is {name}", make, "train", damaged=True)


def pointers(folder: Path) -> None:
    """Make a store whose rows have a column of Python objects: whatever lies there is followed as an address."""
    layout = Layout.read(folder / STORE)
    rewrite(lambda content: content["extras"].update(trap=["O", []]))(folder)
    (folder / STORE / "rows.bin").write_bytes(b"\x41" * (layout.num_envs * layout.slots * (layout.record.itemsize + 8)))


def rows() -> Iterator[Case]:
    """Stores whose rows hold absurd numbers, and the right checksums."""
    values: dict[str, tuple[float, ...]] = dict.fromkeys(("reward", "observation"), (NAN, INFINITY, 3e38))
    values |= {"action": (-1, 2, 10**9, -(2**63))} | dict.fromkeys(("is_first", "is_last", "terminated"), (255,))
    for column, numbers in values.items():
        for number in numbers:
            for command in ("train", "resume"):
                make = lambda folder, c=column, n=number: forge(folder / STORE, c, n)  # noqa: E731
                yield Case("absurd stores", f"every {column} is {number} ({command})", make, command)
    for which in (0, 1):
        for number in (0, 1, 2**16, 2**32 - 1, 2**40 - 1):
            for command in ("train", "resume"):
                make = lambda folder, w=which, n=number: head(folder / STORE, w, n)  # noqa: E731
                yield Case("absurd stores", f"word {which} of head.bin is {number} ({command})", make, command)


def forge(path: Path, column: str, number: float) -> None:
    """Set a column of every valid row, and the checksums that go with it."""
    layout = Layout.read(path)
    shape = (layout.num_envs, layout.slots)
    records = np.memmap(path / "rows.bin", layout.record, "r+", shape=shape)
    observations = np.memmap(
        path / "observation.bin", layout.observation_dtype, "r+", shape=(*shape, *layout.observation_shape)
    )
    for env, row in np.ndindex(layout.num_envs, replay_format.HeadFile(path, layout.capacity, False).read().rows):
        if column == "observation":
            observations[env, row] = number
        elif records[column].dtype == bool:
            records[column].view(np.uint8)[env, row] = number
        else:
            records[column][env, row] = number
        content = records[env, row : row + 1].view(np.uint8)[:-4]
        records["checksum"][env, row] = row_checksum(observations[env, row], content, env, row)


def head(path: Path, which: int, number: int) -> None:
    """Set a word of head.bin, with its own check."""
    content = bytearray((path / "head.bin").read_bytes())
    content[8 * which : 8 * which + 8] = struct.pack("<Q", replay_format._to_word(number, which))
    (path / "head.bin").write_bytes(content)


def links() -> Iterator[Case]:
    """Links, pipes and folders where files are expected."""
    makers: dict[str, Callable[[Path, Path], Any]] = {
        "a link to another file": lambda path, folder: path.symlink_to(folder / "victim"),
        "a link upwards": lambda path, folder: path.symlink_to(os.path.relpath(folder / "victim", path.parent)),
        "a link to itself": lambda path, folder: path.symlink_to(path.name),
        "a link to /dev/zero": lambda path, folder: path.symlink_to("/dev/zero"),
        "a pipe": lambda path, folder: os.mkfifo(path),
        "a folder": lambda path, folder: path.mkdir(),
    }
    targets = {STORE / name: ("train",) for name in ("meta.json", "observation.bin", "head.bin")}
    targets[STORE / "rows.bin"] = ("train", "resume")
    targets[Path("run/checkpoints/last.ckpt")] = ("evaluate", "resume")
    targets[Path("run/evaluations.jsonl")] = ("report", "evaluate")
    targets[Path("run/config.yaml")] = ("resume",)
    targets[Path("run/metrics.csv")] = ("resume",)
    for target, commands in targets.items():
        for name, maker in makers.items():
            for command in commands:
                if name == "a folder" and target.parent == Path("run"):
                    continue

                def make(folder: Path, target: Path = target, maker: Callable[[Path, Path], Any] = maker) -> None:
                    (folder / target).unlink()
                    maker(folder / target, folder)

                inside = ("--out", "run") if command == "evaluate" else ()
                yield Case("links", f"{target} is {name} ({command})", make, command, arguments=inside)


def configs(canary: Path) -> Iterator[Case]:
    """Configuration files with tags that make objects."""
    tags = (
        f'!!python/object/apply:os.system ["touch {canary}"]',
        f'!!python/object/apply:subprocess.Popen [["touch", "{canary}"]]',
        f"!!python/object/new:os.system [touch {canary}]",
        "!!python/module:evil",
        "!!python/name:evil.Model",
        "!!python/object:evil.Model {}",
        f"!!python/object/apply:eval [\"open('{canary}', 'w')\"]",
    )
    for tag in tags:
        for key in ("model", "data", "trainer", "seed_everything", "init_from"):
            make = lambda folder, key=key, tag=tag: (folder / "agent.yaml").write_text(f"{key}: {tag}\n")  # noqa: E731
            yield Case("configurations", f"{tag.split()[0]} for {key}", make, "init_from")


def evaluations(random: np.random.Generator) -> Iterator[Case]:
    """Tables of evaluations that a report reads."""
    file = Path("run/evaluations.jsonl")
    for part in random.random(8):
        make = lambda folder, part=part: blank(folder / file, part, 20)  # noqa: E731
        yield Case("evaluations", f"20 zeros at {part:.4f}", make, "report")
        make = lambda folder, part=part: cut(folder / file, part)  # noqa: E731
        yield Case("evaluations", f"cut at {part:.4f}", make, "report")
    texts = {"deep": DEEP, "a number": "1" * 5000, "bytes": "\0\x1b]0;title\a\n", "null": "null", "empty": ""}
    for name, text in texts.items():
        make = lambda folder, text=text: (folder / file).write_text(text + "\n")  # noqa: E731
        yield Case("evaluations", name, make, "report")
    values = (*NUMBERS[:3], NAN, 10**400, "[/red]", "$\\frac$", "<script>x</script>", "\x1b[2J", {"a": [1]})
    values += ("../../x", "x" * 100_000, "\ud800")
    for key in ("env_steps", "updates", "experiment", "seed", "environment", "game", "protocol", "policy", "final"):
        for value in values:
            change = lambda folder, key=key, value=value: alter(folder / file, (key,), value)  # noqa: E731
            yield Case("evaluations", f"{key} is {repr(value)[:30]}", change, "report")
    for key in ("return", "length", "seed", "finished"):
        for value in NUMBERS:
            change = lambda folder, key=key, value=value: alter(folder / file, ("episodes", 0, key), value)  # noqa: E731
            yield Case("evaluations", f"{key} of an episode is {value}", change, "report")


def alter(path: Path, keys: tuple[Any, ...], value: Any) -> None:
    """Change something in the only evaluation of a file."""
    content = json.loads(path.read_text())
    put(content, keys, value)
    path.write_text(json.dumps(content) + "\n")


def metrics(random: np.random.Generator) -> Iterator[Case]:
    """Tables of metrics that a run which goes on appends to."""
    file = Path("run/metrics.csv")
    texts = {"empty": "", "no header": "1,2,3\n", "long rows": "step,a\n1,2,3,4\n", "nulls": "step\0,a\n\0\n"}
    texts |= {"a long field": "step," + "x" * 200_000 + "\n", "twice": "step,step\n1,2\n", "quotes": 'step,"a\n1,2\n'}
    for name, text in texts.items():
        make = lambda folder, text=text: (folder / file).write_text(text)  # noqa: E731
        yield Case("metrics", name, make, "resume")
    for size in (1, 100, 10_000):
        content = random.bytes(size)
        make = lambda folder, content=content: (folder / file).write_bytes(content)  # noqa: E731
        yield Case("metrics", f"{size} bytes at random", make, "resume")
    link = lambda folder: shutil.move(folder / file, folder / "x") and (folder / file).symlink_to("../x")  # noqa: E731
    yield Case("metrics", "a link out of the run", link, "resume")
