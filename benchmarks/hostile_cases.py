"""The damaged and hostile checkpoints of benchmarks/hostile_files.py, each made in a copy of a real run's folder."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.runs import checkpoint_files

AGENT: dict[str, Any] = {
    "model": {
        "class_path": "modules.agent.Agent",
        "init_args": {
            "world_model": {
                "class_path": "modules.states.mlp_ensemble.MLPEnsemble",
                "init_args": {"num_members": 2, "num_elites": 1, "hidden_size": 16},
            },
            "policy": {
                "class_path": "modules.policies.q_learning.QLearning",
                "init_args": {"network": {"hidden": [24]}},
            },
            "policy_learns_from": "real",
        },
    },
    "data": {
        "class_path": "datamodules.control.ControlReplay",
        "init_args": {
            "id": "CartPole-v1",
            "envs": {"training": 2},
            "sampling": {"batch_size": 8},
            "storage": {"capacity": 200},
        },
    },
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 2,
        "limit_train_batches": 2,
        "log_every_n_steps": 1,
        "logger": [{"class_path": "pipelines.runs.loggers.CSVLogger"}],
        "callbacks+": [
            {
                "class_path": "pipelines.callbacks.acting.collect.Collect",
                "init_args": {"prefill": 100, "steps_per_update": 2.0},
            },
        ],
    },
}
"""A model-free and a model-based part, on vectors."""
EVIL = """from pathlib import Path
from lightning import LightningModule
Path("{canary}").touch()
class Model(LightningModule):
    pass
"""
"""evil.py, beside the run's folder: touches the canary when it is imported."""
LAST = Path("run/checkpoints/last.ckpt")
STORE = Path("run/replay/rank0")
FIT = ("fit", "--config", "agent.yaml", "--trainer.default_root_dir")
COMMANDS: dict[str, tuple[str, ...]] = {
    "evaluate": ("evaluate", str(LAST), "--episodes", "1", "--max_steps", "5", "--out", "out"),
    "search": ("search", str(LAST), "--steps", "2", "--actor.search.stop.simulations", "4", "--folder", "out"),
    "resume": (*FIT, "run", "--ckpt_path", "last", "--trainer.max_steps", "6"),
    "go on": (*FIT, "run", "--ckpt_path", str(LAST), "--trainer.max_steps", "6"),
    "init_from": (*FIT, "other", "--init_from", str(LAST)),
    "init_fresh": (*FIT, "other", "--init_from", str(LAST), "--init_fresh", "true"),
    "train": (*FIT, "other", "--data.path", str(STORE)),
    "report": ("report", "run", "--out", "out"),
}
READERS = ("evaluate", "search", "resume", "go on", "init_from")
"""The commands that read a checkpoint."""
NAN, INFINITY = float("nan"), float("inf")
ABSURD: tuple[Any, ...] = (None, True, -1, 0, 10**9, 10**18, 10**400, 1e308, NAN, INFINITY, "", "x" * 10_000, "\x1b[2J")
ABSURD += (b"\0", [], {}, [None], {"class_path": "os.system", "init_args": {"command": ""}}, [[]] * 100, {"": {"": 1}})
ABSURD += (torch.zeros(0), torch.full((3,), NAN), torch.zeros(1).expand(10**6), "../../passwd", "evil.Model")


@dataclass(frozen=True)
class Bench:
    """Where the run that all cases begin with lies, and the file that smuggled code would touch."""

    base: Path
    canary: Path


@dataclass(frozen=True)
class Case:
    """What is done to a copy of the run's folder, and the command that it is given to."""

    kind: str
    name: str
    make: Callable[[Path], Any]
    command: str = "evaluate"
    damaged: bool = False
    """Bytes were changed by chance: that must be noticed."""
    arguments: tuple[str, ...] = ()


class Trap:
    """Calls something when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def cases(bench: Bench, random: np.random.Generator) -> Iterator[Case]:
    """Yield every case."""
    yield from damages(random)
    yield from swaps()
    yield from traps(bench.canary)
    yield from named_classes()
    yield from absurdities(bench, random)
    yield from bombs()


# Damage by chance.


def cut(path: Path, part: float) -> None:
    """Cut a file short."""
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])


def flip(path: Path, part: float, bit: int) -> None:
    """Flip a bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(part * len(content))] ^= 1 << bit
    path.write_bytes(content)


def blank(path: Path, part: float, length: int) -> None:
    """Fill a part of a file with zeros, or ones where there were zeros already."""
    content = bytearray(path.read_bytes())
    start = int(part * len(content))
    zeros = bytes(len(content[start : start + length]))
    content[start : start + length] = zeros if any(content[start : start + length]) else b"\xff" * len(zeros)
    path.write_bytes(content)


def damages(random: np.random.Generator) -> Iterator[Case]:
    """Damage the last checkpoint, or both."""
    harms: dict[str, Callable[[Path], None]] = {}
    for part in (0.0, *random.random(24), 0.999999):
        harms[f"cut at {part:.4f}"] = lambda path, part=part: cut(path, part)
    for part in (0.0, *random.random(24), 0.999999):
        harms[f"bit flipped at {part:.4f}"] = lambda path, part=part: flip(path, part, int(part * 1e6) % 8)
    for part, length in zip(random.random(14), 2 ** random.integers(0, 14, 14), strict=True):
        harms[f"{length} zeros at {part:.4f}"] = lambda path, p=part, n=length: blank(path, p, int(n))
    for number, (name, harm) in enumerate(harms.items()):
        command = (*READERS, "resume", "resume")[number % 7]
        yield Case("damaged checkpoint", name, lambda folder, harm=harm: harm(folder / LAST), command, damaged=True)
        if number % 5 == 0:
            both = lambda folder, harm=harm: [harm(path) for path in (folder / LAST).parent.glob("*.ckpt")]  # noqa: E731
            yield Case("both checkpoints damaged", name, both, "resume", damaged=True)
    yield Case("damaged checkpoint", "missing", lambda folder: (folder / LAST).unlink(), "resume", damaged=True)


def swaps() -> Iterator[Case]:
    """Put files in each other's place."""
    files = (STORE / "rows.bin", STORE / "meta.json", STORE / "head.bin", Path("agent.yaml"), Path("run/metrics.csv"))
    for file in files:
        for command in ("evaluate", "resume"):
            make = lambda folder, file=file: shutil.copy(folder / file, folder / LAST)  # noqa: E731
            yield Case("swapped files", f"{file} as {LAST.name}", make, command, damaged=True)
        for target in files[:3]:
            if target != file:
                make = lambda folder, file=file, target=target: shutil.copy(folder / file, folder / target)  # noqa: E731
                yield Case("swapped files", f"{file} as {target.name}", make, "train", damaged=True)


# Code.


def traps(canary: Path) -> Iterator[Case]:
    """Pickles that call something, in every container that is told apart."""
    code = f"open({str(canary)!r}, 'w').close()"
    shell = f"touch {canary}"
    payloads = {
        "os.system": Trap(__import__("os").system, shell),
        "subprocess.Popen": Trap(__import__("subprocess").Popen, ["touch", str(canary)]),
        "exec": Trap(exec, code),
        "eval": Trap(eval, f"__import__('pathlib').Path({str(canary)!r}).touch()"),
        "runpy": Trap(__import__("runpy").run_path, "evil.py"),
        "import": Trap(__import__, "evil"),
        "open": Trap(open, str(canary), "w"),
        "torch.hub.load": Trap(torch.hub.load, ".", "evil", "local"),
    }
    number = 0
    for name, trap in payloads.items():
        for container, write in containers(trap).items():
            command = READERS[number % len(READERS)]
            number += 1
            yield Case("pickled code", f"{name} in {container}", lambda folder, w=write: w(folder / LAST), command)


def containers(trap: Trap) -> dict[str, Callable[[Path], Any]]:
    """Return how to write a trap into a file, by container."""

    def within(*keys: str) -> Callable[[Path], Any]:
        def write(path: Path) -> None:
            checkpoint = inner = checkpoint_files.read(path)
            for key in keys[:-1]:
                inner = inner[key]
            inner[keys[-1]] = trap
            checkpoint_files.write(checkpoint, path)

        return write

    def tar(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            for name in ("storages", "tensors", "pickle"):
                content = pickle.dumps(trap, protocol=2)
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    def foreign_zip(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": trap}, protocol=2))
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/code/evil.py", "raise SystemExit")
            archive.writestr("archive/constants.pkl", pickle.dumps(trap, protocol=2))

    return {
        **{f"a pickle of protocol {n}": lambda p, n=n: p.write_bytes(pickle.dumps(trap, n)) for n in (0, 2, 5)},
        "a sealed checkpoint": within("trap"),
        "its weights": within("state_dict", "policy.trap"),
        "its configuration": within("config", "model"),
        "its loops": within("loops", "fit_loop"),
        "torch's zip": lambda path: torch.save({"state_dict": trap}, path),
        "torch's old format": lambda path: torch.save({"s": trap}, path, _use_new_zipfile_serialization=False),
        "torch's tar": tar,
        "a zip with code": foreign_zip,
        "a NumPy array": lambda path: np.save(path.open("wb"), np.array([trap], object), allow_pickle=True),
        "NumPy's zip": lambda path: np.savez(path.open("wb"), a=np.array([trap], object)),
    }


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Return what changes the last checkpoint and seals it again."""

    def make(folder: Path) -> None:
        checkpoint = checkpoint_files.read(folder / LAST)
        change(checkpoint)
        checkpoint_files.write(checkpoint, folder / LAST)
        (folder / LAST).with_name("previous.ckpt").unlink()

    return make


def named_classes() -> Iterator[Case]:
    """Checkpoints whose configuration names classes and worlds that are not dreamcade's."""
    names = ("os.system", "subprocess.Popen", "evil.Model", "builtins.exec", "runpy.run_path", "shutil.rmtree")
    names += ("pipelines.cli.os.system", "modules.agent.torch.hub.load", "pipelines.runs.checkpoints.Path", "evil")
    names += ("pipelines.commands.evaluate.main", "jsonargparse.set_parsing_settings", "lightning.Trainer")
    keys = {
        "model": ("config", "model"),
        "world model": ("config", "model", "init_args", "world_model"),
        "policy": ("config", "model", "init_args", "policy"),
        "hidden": ("config", "model", "init_args", "policy", "init_args", "hidden"),
        "rounds": ("config", "model", "init_args", "rounds"),
        "data": ("config", "data"),
        "prioritised": ("config", "data", "init_args", "sampling", "prioritised"),
    }
    for name in names:
        for place, path in keys.items():
            whole = {"class_path": name, "init_args": {"args": "true", "command": "true"}}
            for value in (whole, name) if name in names[:3] else (whole,):
                change = partial(put, keys=path, value=value)
                form = "" if isinstance(value, dict) else " as a word"
                yield Case("named classes", f"{name}{form} for the {place}", edit(change))
        search = [{"class_path": name, "init_args": {"search": {"class_path": name, "init_args": {}}}}]
        change = partial(put, keys=("config", "trainer", "callbacks"), value=search)
        yield Case("named classes", f"{name} for the search", edit(change), "search")
    for path in (("config", "data", "init_args", "id"), ("description", "id"), ("world",)):
        change = partial(put, keys=path, value="evil:CartPole-v1")
        for command in ("evaluate", "search"):
            yield Case("named classes", f"evil:CartPole-v1 as {'.'.join(path)}", edit(change), command)


def put(content: Any, keys: tuple[Any, ...], value: Any) -> None:
    """Set what lies under some keys."""
    for key in keys[:-1]:
        content = content[key]
    content[keys[-1]] = value


# Numbers.


def leaves(content: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys of everything in nested dicts and lists, inner nodes included."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*keys, key)
        yield from leaves(value, (*keys, key))


def absurdities(bench: Bench, random: np.random.Generator) -> Iterator[Case]:
    """Replace or take away one thing in a checkpoint, whatever it is."""
    checkpoint = checkpoint_files.read(bench.base / LAST)
    every = [keys for keys in leaves(checkpoint) if keys[0] != "config" or keys[1:2] in (("model",), ("data",))]
    for number in range(130):
        keys = every[int(random.integers(len(every)))] if number >= len(checkpoint) else (list(checkpoint)[number],)
        value = ABSURD[int(random.integers(len(ABSURD)))]
        command = (*READERS, "init_fresh", "go on", "evaluate")[number % 8]
        change = partial(put, keys=keys, value=copy.deepcopy(value))
        name = f"{'.'.join(map(str, keys))} is {repr(value)[:40]}"
        yield Case("absurd values", f"{name} ({command})", edit(change), command)
    sizes = {"world_model": {"hidden_size": 10**7}, "policy": {"hidden": [10**6, 10**6]}}
    for part, value in sizes.items():
        keys = ("config", "model", "init_args", part, "init_args")
        yield Case("absurd values", f"{part} of {value}", edit(partial(put, keys=keys, value=value)))
    shapes = ((10**6, 10**6), (-4,), (4, 4, 4, 4, 4), (0,), (10**30,), 4, "4", None)
    for shape in shapes:
        change = partial(put, keys=("spec", "observation_shape"), value=shape)
        yield Case("absurd values", f"observations of shape {shape}", edit(change))
    for version in (2, 10**9, "1", None, 1.5, [1]):
        for command in ("evaluate", "resume"):
            change = partial(put, keys=("format_version",), value=version)
            yield Case("absurd values", f"format version {version} ({command})", edit(change), command)


def bombs() -> Iterator[Case]:
    """Small files that are large inside."""

    def deflated(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
            archive.writestr("archive/version", "3\n")
            with archive.open("archive/data/0", "w", force_zip64=True) as member:
                for _ in range(2000):
                    member.write(bytes(1 << 20))

    def overlapping(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content)
        with zipfile.ZipFile(path, "a") as archive:
            first = archive.infolist()[0]
            archive.filelist += [copy.copy(first) for _ in range(100_000)]
            archive._didModify = True  # type: ignore[attr-defined]

    pickles = {
        "a long bytearray": b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x10\x85R.",
        "nested lists": b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
        "nested tuples": b"\x80\x02)" + b"\x85" * 300_000 + b".",
        "an endless memo": b"\x80\x02]q\0" + b"(h\0h\0h\0h\0e" * 100_000 + b".",
        "no end": b"\x80\x02" + b"(" * 300_000,
    }

    def pickled(content: bytes) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", content)
                archive.writestr("archive/byteorder", "little")
                archive.writestr("archive/version", "3\n")

        return make

    every = {name: pickled(content) for name, content in pickles.items()}
    every |= {"deflated zeros": deflated, "overlapping members": overlapping}
    for name, write in every.items():
        for command in ("evaluate", "resume"):
            yield Case("bombs", name, lambda folder, write=write: write(folder / LAST), command)
