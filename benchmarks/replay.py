"""Replay sampling against memcpy and torchrl, and collecting against the bare emulator.

    python benchmarks/replay.py

Sampling: 64 windows of 16 single frames of 84 x 84 from 100 000 rows (8 environments, episodes of 500), all columns
included. memcpy copies as many bytes into one array that is used again, reading through the whole store in turn, so
that its source is as cold as the windows are. torchrl: LazyMemmapStorage and SliceSampler on the same rows, as it is
while a buffer grows, and with the cached trajectories that every new row empties; slices lie within episodes on both
sides. How many times the store is quicker than torchrl is bounded by how many times memcpy is, which stands beside it.
Collecting: 8 Pong emulators with random actions, bare, and the same games with every row appended to a store, in
seconds of the processor, those of the emulators' threads included. The sides of a comparison take turns in one process;
the figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ale_py
import numpy as np
import report
import smoke
import torch
from ale_py import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from datamodules.environments.atari import AtariEnvironments
from datamodules.replay.store import ReplayStore
from pipelines.machine.provenance import installed_version

NUM_ENVS = 8
WINDOWS, LENGTH, SHAPE = 64, 16, (1, 84, 84)
FRAME = 84 * 84


def fill(store: ReplayStore, generator: np.random.Generator, episode: int) -> float:
    """Fill a store one and a half times over, so that its ring has wrapped; return the seconds of an append."""
    frames = generator.integers(0, 256, (64, NUM_ENVS, *SHAPE), dtype=np.uint8)
    times = []
    for row in range(store.capacity * 3 // 2):
        is_first, is_last = np.full(NUM_ENVS, row % episode == 0), np.full(NUM_ENVS, row % episode == episode - 1)
        action = generator.integers(0, 6, NUM_ENVS)
        begin = time.perf_counter()
        store.append(frames[row % 64], action, np.zeros(NUM_ENVS), np.zeros(NUM_ENVS), is_first, is_last)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def torchrl_buffer(store: ReplayStore, folder: str, cached: bool) -> Callable[[], object]:
    """Copy a store into torchrl's memory-mapped buffer and return its sampling."""
    from tensordict import TensorDict
    from torchrl.data import LazyMemmapStorage, SliceSampler, TensorDictReplayBuffer

    num_rows = NUM_ENVS * store.capacity
    buffer = TensorDictReplayBuffer(
        storage=LazyMemmapStorage(num_rows, scratch_dir=folder),
        sampler=SliceSampler(slice_len=LENGTH, traj_key="episode", cache_values=cached),
        batch_size=WINDOWS * LENGTH,
    )
    for env in range(NUM_ENVS):
        whole = store.gather([env], [store.oldest], store.capacity)[0]
        episode = whole.is_first.cumsum(0) + env * store.capacity
        columns = {name: value for name, value in vars(whole).items() if isinstance(value, torch.Tensor)}
        buffer.extend(TensorDict({**columns, "episode": episode}, batch_size=[store.capacity]))
    return buffer.sample


def interleave(
    sides: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Time several functions in turn, there and back, after two rounds to warm up; return the seconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 2):
        for name, side in list(sides.items())[:: 1 if repeat % 2 else -1]:
            begin = clock()
            side()
            if repeat >= 2:
                times[name].append(clock() - begin)
    return times


def sampling(folder: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure sampling, appending and opening."""
    generator = np.random.default_rng(0)
    store = ReplayStore.create(
        f"{folder}/store", observation_shape=SHAPE, num_actions=6, num_envs=NUM_ENVS, capacity=options.capacity
    )
    append = fill(store, generator, options.episode)
    begin = time.perf_counter()
    ReplayStore.open(f"{folder}/store")
    verify = time.perf_counter() - begin

    source = np.memmap(f"{folder}/store/observation.bin", np.uint8, "r").view(np.ndarray)

    def copier(count: int) -> Callable[[], object]:
        target, place = np.empty(count, np.uint8), 0

        def copy() -> None:
            nonlocal place
            place = place + count if place + 2 * count <= len(source) else 0
            np.copyto(target, source[place : place + count])

        return copy

    num_bytes = WINDOWS * LENGTH * FRAME
    comparisons: list[dict[str, Callable[[], object]]] = [
        {
            "memcpy": copier(num_bytes),
            "sample": lambda: store.sample(generator, WINDOWS, LENGTH),
        },
        {
            "memcpy_stack4": copier(4 * num_bytes),
            "sample_stack4": lambda: store.sample(generator, WINDOWS, LENGTH, frame_stack=4),
        },
    ]
    if installed_version("torchrl"):
        comparisons.append({
            "memcpy_beside_torchrl": copier(num_bytes),
            "sample_within": lambda: store.sample(generator, WINDOWS, LENGTH, cross_episodes=False),
            "torchrl": torchrl_buffer(store, f"{folder}/growing", cached=False),
            "torchrl_cached": torchrl_buffer(store, f"{folder}/cached", cached=True),
        })  # fmt: skip
    else:
        print("torchrl is not installed: its side is skipped")
    times = {name: each for sides in comparisons for name, each in interleave(sides, options.repeats).items()}
    seconds = {name: statistics.median(each) for name, each in times.items()}
    rates = {name: (4 if "stack4" in name else 1) * num_bytes / each / 1e9 for name, each in seconds.items()}
    return {
        "sampling_vs_memcpy": round(seconds["memcpy"] / seconds["sample"], 3),
        "sampling_stack4_vs_memcpy": round(seconds["memcpy_stack4"] / seconds["sample_stack4"], 3),
        **{
            f"{ours}_vs_{theirs}": round(seconds[theirs] / seconds[name], 1)
            for theirs in ("torchrl", "torchrl_cached")
            for ours, name in (("sampling", "sample_within"), ("memcpy", "memcpy_beside_torchrl"))
            if theirs in seconds
        },
        "sampled_rows_per_second": round(WINDOWS * LENGTH / seconds["sample"]),
        **{f"{name}_ms": round(1e3 * each, 3) for name, each in seconds.items()},
        **{f"{name}_gb_per_second": round(each, 3) for name, each in rates.items()},
        "append_us": round(1e6 * append, 1),
        "open_and_verify_s": round(verify, 2),
    }


def collecting(folder: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure the bare emulator and the collecting of its rows."""
    raw_generator, generator = np.random.default_rng(0), np.random.default_rng(0)
    raw = AtariVectorEnv(
        "pong", NUM_ENVS, stack_num=1, frameskip=4, img_height=84, img_width=84, reward_clipping=False,
        use_fire_reset=False, noop_max=31, autoreset_mode=AutoresetMode.NEXT_STEP,
    )  # fmt: skip
    # As AtariEnvironments seeds itself: with the same actions both sides emulate the same games.
    raw.reset(seed=(np.random.SeedSequence((0, 0)).generate_state(NUM_ENVS) >> 1).astype(np.int64))
    environments = AtariEnvironments("pong", NUM_ENVS)
    store = ReplayStore.create(
        f"{folder}/pong",
        observation_shape=environments.observation_shape,
        num_actions=environments.num_actions,
        num_envs=NUM_ENVS,
        capacity=options.capacity,
        description=environments.description,
    )
    observation, is_first, is_last = environments.reset(), np.ones(NUM_ENVS, bool), np.zeros(NUM_ENVS, bool)

    def step_raw() -> None:
        for _ in range(options.collect_steps):
            raw.step(raw_generator.integers(0, 6, NUM_ENVS))

    def collect() -> None:
        nonlocal observation, is_first, is_last
        for _ in range(options.collect_steps):
            action = generator.integers(0, 6, NUM_ENVS)
            following, reward, terminated, truncated = environments.step(action)
            store.append(observation, action, reward, terminated, is_first, is_last)
            observation, is_first, is_last = following, is_last, terminated | truncated

    times = interleave({"raw": step_raw, "collect": collect}, options.collect_blocks, time.process_time)
    raw_time, collect_time = (statistics.median(times[name]) for name in ("raw", "collect"))
    ratios = [bare / collected for bare, collected in zip(times["raw"], times["collect"], strict=True)]
    return {
        "collect_vs_raw_env": round(statistics.median(ratios), 3),
        "raw_env_steps_per_processor_second": round(NUM_ENVS * options.collect_steps / raw_time),
        "collected_rows_per_processor_second": round(NUM_ENVS * options.collect_steps / collect_time),
    }


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--capacity", type=int, default=12_500, smoke=600, help="rows of an environment in the store")
    parser.add_argument("--episode", type=int, default=500, smoke=50, help="rows of an episode")
    parser.add_argument("--repeats", type=int, default=40, smoke=2, help="repeats of a sampling")
    parser.add_argument("--collect_blocks", type=int, default=60, smoke=2, help="blocks of collecting, of each side")
    parser.add_argument("--collect_steps", type=int, default=50, smoke=5, help="steps of a block of collecting")
    options = parser.parse_args()
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    with tempfile.TemporaryDirectory() as folder:
        # First, while no gigabytes of the other stores are on their way to the disk.
        figures = collecting(folder, options)
        figures = {**sampling(folder, options), **figures}
    report.write(Path(__file__).stem, figures, options)


if __name__ == "__main__":
    main()
