"""Whatever is wrong gets one clear line and exit code 2, and nothing is lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from pipelines.runs import checkpoints

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data.game", "Pongg"], ["Pongg", "pong"]),
        (["--data.game", "joust"], ["joust", "single-player"]),
        (["--data.protocol", "atari100"], ["atari100", "atari100k"]),
        (["--data.gaem", "Pong"], ["gaem", "game"]),
        (["--model.lrr", "3"], ["lrr", "lr"]),
        (["--model.lr", "3"], ["lr", "optimization.lr"]),
        (["--data.batch_size", "3"], ["batch_size", "sampling.batch_size"]),
        (["--data.sampling.batch_sise", "3"], ["batch_sise", "batch_size"]),
        (["--model.size", "smal"], ["smal", "small"]),
        (["--model", "modules.frames.unet.UNett"], ["UNett", "modules.frames.unet.UNet"]),
        (["--model", "Unet"], ["Unet", "modules.frames.unet.UNet"]),
        (["--trainer.max_stepss", "3"], ["max_stepss", "trainer.max_steps"]),
        (["--trainer.max_steps", "many"], ["trainer.max_steps", "many"]),
        (
            ["--trainer.callbacks+=pipelines.callbacks.acting.collect.Colect"],
            ["Colect", "pipelines.callbacks.acting.collect.Collect"],
        ),
        (["--config", "configs/experiment/unett.yaml"], ["unett", "configs/experiment/unet.yaml"]),
        (["--trainer.accelerator", "gpu"], ["gpu", "no GPU is available"]),
        (["--data.envs.training", "0"], ["data.envs.training", "at least 1"]),
        (["--data.sampling.sequence_length", "1"], ["sequence_length", "at least 2"]),
        (["--data.sampling.sequence_length", "400"], ["data.storage.capacity", "fewer than a window needs"]),
        (["--data.storage.capacity", "1000000000000"], ["GiB"]),
        (["--data.path", "nowhere"], ["nowhere"]),
        (["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt"]),
        (["--ckpt_path", "last"], ["no run to resume"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_argument(fit, tmp_path, arguments, words):
    if torch.cuda.is_available() and "gpu" in arguments:
        pytest.skip("this machine has a GPU")
    assert fit(*arguments).refused(*words)
    assert not list(tmp_path.rglob("*.ckpt"))
    late = "--data.sampling.sequence_length" in arguments
    assert late or not list(tmp_path.rglob("rows.bin")), "room was taken on disk"


@pytest.mark.parametrize(
    "content", ["data: {init_args: {gaem: Pong}}", "trainr: {max_steps: 3}", "trainer: {max_step: 3}"]
)
def test_a_wrong_key_in_a_file(fit, tmp_path, content):
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    assert fit("--config", path).refused("unknown key", "nearest")


def test_a_wrong_command(run):
    assert run("fitt").refused("fitt", "fit")
    assert run("validate", "--config", "configs/quickstart.yaml").refused("--ckpt_path")
    assert run("collect", "--gme", "pong").refused("gme", "game")


def test_a_run_is_not_overwritten(fit, trained):
    before = (trained / "checkpoints" / "last.ckpt").read_bytes()
    assert fit("--trainer.default_root_dir", trained).refused("has a run already", "--ckpt_path last")
    assert (trained / "checkpoints" / "last.ckpt").read_bytes() == before


# Stores.


def test_a_store_of_another_game_or_protocol(fit, pong):
    assert fit("--data.path", pong, "--data.game", "Breakout").refused("pong", "breakout")
    assert fit("--data.path", pong, "--data.protocol", "machado2018").refused("atari100k", "machado2018")


def test_a_sequence_longer_than_the_store(fit, pong):
    assert fit("--data.path", pong, "--data.sampling.sequence_length", 200).refused("200", "128 rows")


@pytest.mark.parametrize("name", ["observation.bin", "rows.bin", "head.bin", "meta.json"])
@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_a_harmed_store(fit, pong, tmp_path, name, harm):
    store = shutil.copytree(pong, tmp_path / "store")
    damage(store / name, harm)
    assert fit("--data.path", store).refused("store")


def damage(path: Path, harm: str) -> None:
    content = bytearray(path.read_bytes())
    if harm == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


# Checkpoints.


@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_a_harmed_checkpoint(fit, trained, tmp_path, harm):
    path = Path(shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path / "harmed.ckpt"))
    if harm == "cut":
        damage(path, harm)
    else:
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda info: info.file_size)
        content = bytearray(path.read_bytes())
        content[largest.header_offset + 300 + largest.file_size // 2] ^= 0xFF
        path.write_bytes(content)
    assert fit("--ckpt_path", path).refused("harmed.ckpt", "damaged")


class Trap:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch sprung",)


def test_a_checkpoint_that_holds_code(fit, tmp_path):
    path = tmp_path / "trap.ckpt"
    torch.save({"state_dict": Trap()}, path)
    assert fit("--ckpt_path", path).refused("refused", "plain data")
    assert not (tmp_path / "sprung").exists()


# While it runs.


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(fit, pong, tmp_path):
    folder = tmp_path / "run"
    outcome = fit(
        *("--data.path", pong, "--trainer.default_root_dir", folder, "--trainer.max_steps", 50),
        *("--model.optimization", "{lr: 1.0e+30, warmup: 0, decay: false}", "--trainer.gradient_clip_val", "null"),
        *("--trainer.limit_val_batches", 0, "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"),
        *("--trainer.callbacks.save_last", "true", "--trainer.callbacks.save_top_k", 0),
        *("--trainer.callbacks.every_n_train_steps", 1, "--trainer.callbacks.enable_version_counter", "false"),
    )
    last = folder / "checkpoints" / "last.ckpt"
    assert outcome.refused("the loss is", "bad_batch", str(last))
    kept = checkpoints.read(last)
    assert kept["global_step"] > 0
    assert all(w.isfinite().all() for w in kept["state_dict"].values() if isinstance(w, torch.Tensor))
    batch = next(folder.glob("bad_batch_*.pt"))
    assert str(batch) in outcome.err
    assert set(torch.load(batch, weights_only=True)) == {"real"}


def test_sigterm_leaves_a_checkpoint_and_ends_cleanly(tmp_path, pong):
    folder = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "pipelines.cli", "fit"),
        *("--config", "configs/quickstart.yaml", "--config", "configs/debug.yaml", "--data.path", str(pong)),
        *("--trainer.default_root_dir", str(folder), "--trainer.max_steps", "100000"),
        *("--trainer.limit_train_batches", "100000"),
    ]
    process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "--ckpt_path last" in err
    updates = checkpoints.read(folder / "checkpoints" / "last.ckpt")["global_step"]
    assert updates > 0
    command[command.index("--trainer.max_steps") + 1] = str(updates + 2)
    subprocess.run([*command, "--ckpt_path", "last"], cwd=PROJECT, check=True, timeout=120, capture_output=True)
    assert checkpoints.read(folder / "checkpoints" / "last.ckpt")["global_step"] == updates + 2
