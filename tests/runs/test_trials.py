"""What failed when it was tried as a new user would: each gets one clear line, or does what it says."""

import csv
import gc
import json
import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium.envs.classic_control import CartPoleEnv

from pipelines import cli
from pipelines.runs import checkpoints

DQN = ("fit", "--config", "configs/experiment/dqn_cartpole.yaml", "--config", "configs/debug.yaml")
LAST = Path("checkpoints/last.ckpt")
CALLBACK = "--trainer.callbacks+=lightning.pytorch.callbacks."


class Ill(CartPoleEnv):
    """Gives at its tenth step, or in its first reset, what no environment should."""

    def __init__(self, where: str = "", **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.where, self.steps = where, 0

    def reset(self, **kwargs):
        if self.where == "reset":
            raise RuntimeError("the cart is broken")
        return super().reset(**kwargs)

    def step(self, action):
        self.steps += 1
        observation, reward, *rest = super().step(action)
        bad = self.steps == 10
        if bad and self.where == "observation":
            observation = np.full_like(observation, np.inf)
        return observation, float("nan") if bad and self.where == "reward" else reward, *rest


for place in ("reward", "observation", "reset"):
    gymnasium.register(f"Ill-{place}-v0", Ill, max_episode_steps=50, kwargs={"where": place})


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """The folder of a run of four updates, which are one epoch."""
    folder = tmp_path_factory.mktemp("short") / "run"
    cli.main([*DQN, "--trainer.default_root_dir", str(folder)])
    return folder


@pytest.fixture
def again(run, short, tmp_path):
    """Go on with a copy of that run."""

    def again(*arguments: object):
        folder = tmp_path / "again"
        if not folder.exists():
            shutil.copytree(short, folder)
        return run(*DQN, "--trainer.default_root_dir", folder, "--ckpt_path", "last", *arguments)

    return again


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.policy.optimization.lr", -1], ["optimization.lr", "at least 0", "-1"]),
        (["--model.policy.optimization.lr", ".nan"], ["optimization.lr", "at least 0", "nan"]),
        (["--model.policy.gradient_clip_val", -1], ["gradient_clip_val", "at least 0"]),
        (["--model.policy.targets.discount", 1.5], ["targets.discount", "from 0 to 1", "1.5"]),
        (["--seed_everything", -1], ["seed_everything", "from 0 to 4294967295", "-1"]),
        (["--seed_everything", 2**32], ["seed_everything", "from 0 to 4294967295", str(2**32)]),
        (["--data.seed", -1], ["data.seed", "at least 0", "-1"]),
        (["--data.storage.capacity", "null"], ["storage.capacity", "None"]),
        (["--model.policy.targets.n_step", "null"], ["n_step", "int"]),
        (["--trainer.devices", "abc"], ["trainer.devices", "abc"]),
        (["--trainer.strategy", "foo"], ["trainer.strategy", "foo"]),
        (["--trainer.accelerator", "foo"], ["trainer.accelerator", "foo", "cpu"]),
        (["--trainer.precision", "64-true"], ["trainer.precision", "64-true", "32-true"]),
        (["--trainer.precision", "bf16-true"], ["trainer.precision", "bf16-true", "bf16-mixed"]),
        (["--trainer.precision", "16-true"], ["trainer.precision", "16-true", "16-mixed"]),
        (["--trainer.val_check_interval", 100], ["trainer.val_check_interval", "100", "limit_train_batches"]),
        (["--trainer.accumulate_grad_batches", 0], ["trainer.accumulate_grad_batches", "at least 1", "0"]),
        (["--trainer.log_every_n_steps", 0], ["trainer.log_every_n_steps", "at least 1", "0"]),
        (["--trainer.limit_train_batches", 0], ["trainer.limit_train_batches", "at least 1", "0"]),
        (["--trainer.limit_train_batches", 0.5], ["trainer.limit_train_batches", "at least 1", "0.5"]),
        (["--trainer.check_val_every_n_epoch", 0], ["trainer.check_val_every_n_epoch", "at least 1", "0"]),
        (["--trainer.val_check_interval", 0], ["trainer.val_check_interval", "more than 0", "0"]),
        (["--callbacks.Collect.limit", -5], ["Collect.limit", "at least 1", "-5"]),
        (["--callbacks.Evaluate", 3], ["callbacks.Evaluate is 3", "--callbacks.Evaluate.KEY"]),
        (["--data.sampling", "{batch_sise: 3}"], ["unknown key sampling.batch_sise", "sampling.batch_size"]),
        (["--data.sampling", "{prioritised: {alfa: 1}}"], ["unknown key 'alfa'", "'alpha'"]),
        (["--model.rounds", "{model_update: 3}"], ["unknown key rounds.model_update", "rounds.model_updates"]),
        (["--model.rounds", "null"], ["model.rounds is null", "Rounds"]),
        (
            ["--trainer.default_root_dir", "/proc/run"],
            ["trainer.default_root_dir", "/proc/run", "cannot be written to"],
        ),
        ([f"{CALLBACK}LearningRateFinder"], ["LearningRateFinder", "lr"]),
        ([f"{CALLBACK}BatchSizeFinder"], ["BatchSizeFinder", "batch size"]),
        ([f"{CALLBACK}EMAWeightAveraging"], ["EMAWeightAveraging", "averaged weights"]),
        (
            [f"{CALLBACK}StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", 0.1],
            ["StochasticWeightAveraging", "averaged weights"],
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_a_setting_that_cannot_be(run, tmp_path, arguments, words):
    folder = tmp_path / "run"
    assert run(*DQN, "--trainer.default_root_dir", folder, *arguments).refused(*words)
    assert not (folder / "replay").exists(), "something was played"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data.storage.capacity", 3], ["data.storage.capacity of 3 steps", "rows are 4"]),
        (["--callbacks.Collect.limit", 3], ["Collect.limit of 3 steps", "rows are 4"]),
        (["--callbacks.Collect", "null"], ["holds no rows", "Collect", "data.path"]),
        (["--model.policy.network.hidden", "[16, -3]"], ["layers of at least 1 unit", "-3"]),
        (["--data.sampling.batch_size", 10**15, "--debug", "false"], ["not enough memory", "doctor"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_what_does_not_fit_together(run, tmp_path, arguments, words):
    assert run(*DQN, "--trainer.default_root_dir", tmp_path / "run", *arguments).refused(*words)


@pytest.mark.parametrize("size", ["[5,5]", "[84,10]", "[0,84]"])
def test_frames_too_small_to_be_measured(run, tmp_path, size):
    arguments = ["--config", "configs/quickstart.yaml", "--config", "configs/debug.yaml", "--data.size", size]
    assert run("fit", *arguments, "--trainer.default_root_dir", tmp_path / "run").refused("size", "at least 11")
    assert run("collect", "--game", "pong", "--path", tmp_path / "store", "--size", size).refused("at least 11")


@pytest.mark.parametrize("content", ["", "# nothing\n", "- 1\n"])
def test_a_configuration_without_keys(run, tmp_path, content):
    path = tmp_path / "empty.yaml"
    path.write_text(content)
    assert run("fit", "--config", path).refused(str(path), "a configuration has keys")
    assert run("plan", "--config", path).refused(str(path), "a configuration has keys")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max_steps", 0], ["--max_steps", "at least 1", "0"]),
        (["--actor.exploration.epsilon", 2], ["epsilon", "from 0 to 1", "2"]),
        (["--actor.exploration.epsilon", ".nan"], ["epsilon", "from 0 to 1", "nan"]),
        (["--episodes", 0], ["--episodes", "at least 1"]),
        (["--epsilon", 0.1], ["--epsilon", "--actor.exploration.epsilon"]),
        (["--simulations", 3], ["--simulations", "--actor.search.stop.simulations"]),
        (["--seed", -1], ["--seed", "from 0"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_an_evaluation_that_cannot_be(run, short, tmp_path, arguments, words):
    last = short / LAST
    assert run("evaluate", last, "--out", tmp_path / "out", *arguments).refused(*words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("there", ["file", "file/below", "link"])
def test_an_output_that_is_no_folder(run, short, pong, tmp_path, there):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    out, last = tmp_path / there, short / LAST
    commands = [
        ("evaluate", last, "--out", out),
        ("plan", "--out", out),
        ("search", last, "--folder", out),
        ("report", short, "--out", out),
        ("collect", "--game", "pong", "--path", out),
        ("import", "pong/random-v0", out),
        ("export", pong, "pong/random-v0", "--path", out),
        ("sweep", "cartpole_grid", "--folder", out),
        (*DQN, "--trainer.default_root_dir", out),
    ]
    for command in commands:
        assert run(*command).refused(str(out), "expected a folder"), command
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", ["plan", "collect", "search", "report", "sweep"])
def test_a_seed_that_no_generator_takes(run, short, command):
    given = {
        "collect": ["--game", "pong", "--path", "store"],
        "search": [short / LAST],
        "report": [short],
        "sweep": ["cartpole_grid"],
    }
    assert run(command, *given.get(command, []), "--seed", -1).refused("--seed", "from 0 to 4294967295", "-1")


def test_a_search_that_would_not_converge(run):
    assert run("plan", "--actor.search.discount", 1.5).refused("search.discount", "from 0 to 1", "1.5")


def test_the_home_folder(run, tmp_path, monkeypatch, short):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = tmp_path / "home" / "mine.yaml"
    config.parent.mkdir()
    config.write_text("trainer: {default_root_dir: ~/of_yaml}\n")
    assert run(*DQN, "--config=~/mine.yaml").code == 0
    assert run(*DQN, "--trainer.default_root_dir=~/given").code == 0
    last = "~/of_yaml/checkpoints/last.ckpt"
    assert run("evaluate", last, "--episodes", 1, "--max_steps", 3, "--out=~/out").code == 0
    assert {path.name for path in config.parent.iterdir()} == {"mine.yaml", "of_yaml", "given", "out"}
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("switch", ["enable_progress_bar", "enable_checkpointing"])
def test_what_is_switched_off(run, tmp_path, switch):
    outcome = run(*DQN, "--trainer.default_root_dir", tmp_path / "run", f"--trainer.{switch}", "false")
    assert outcome.code == 0, outcome.err
    assert ("training" in outcome.out) == (switch != "enable_progress_bar")


@pytest.mark.parametrize("place", ["reward", "observation"])
def test_an_environment_that_gives_no_number(run, tmp_path, place):
    outcome = run(*DQN, "--trainer.default_root_dir", tmp_path / "run", "--data.id", f"Ill-{place}-v0")
    assert outcome.refused(f"Ill-{place}-v0", f"the {place}", "at step 10", "finite")


def test_an_environment_that_fails_at_once(run, tmp_path):
    outcome = run(*DQN, "--trainer.default_root_dir", tmp_path / "run", "--data.id", "Ill-reset-v0")
    assert outcome.refused("Ill-reset-v0", "died in its reset", "the cart is broken")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_nothing_is_held_out(run, short, command):
    outcome = run(command, *DQN[1:], "--ckpt_path", short / LAST)
    assert outcome.refused("has no validation environments", "data.envs.validation")


# What follows the return.


def test_stopping_and_keeping_by_the_return(run, tmp_path):
    keep = (f"{CALLBACK}ModelCheckpoint", "--trainer.callbacks.monitor", "evaluate/return")
    keep += ("--trainer.callbacks.mode", "max", "--trainer.callbacks.filename", "best")
    stop = (f"{CALLBACK}EarlyStopping", "--trainer.callbacks.monitor", "evaluate/return")
    outcome = run(*DQN, "--trainer.default_root_dir", tmp_path / "run", *keep, *stop)
    assert outcome.code == 0, outcome.err
    states = torch.load(tmp_path / "run" / LAST, weights_only=True)["callbacks"]
    (kept,) = (state for name, state in states.items() if "evaluate/return" in name and "ModelCheckpoint" in name)
    assert Path(kept["best_model_path"]).name == "best.ckpt"
    assert kept["best_model_score"] > 0
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


def test_stopping_by_what_nobody_measures(run, tmp_path):
    stop = (f"{CALLBACK}EarlyStopping", "--trainer.callbacks.monitor", "evaluate/retrun")
    assert run(*DQN, "--trainer.default_root_dir", tmp_path / "run", *stop).refused("evaluate/retrun", "EarlyStopping")


# Runs that go on otherwise.


def test_what_can_change_on_the_way_does(again, tmp_path):
    outcome = again("--trainer.max_steps", 8, "--model.policy.optimization.lr", 0.1)
    assert outcome.code == 0, outcome.err
    line = "changed since the checkpoint: trainer.max_steps 4 -> 8, model.policy.optimization.lr 0.0005 -> 0.1"
    assert line in outcome.err
    _, kept = checkpoints.load(tmp_path / "again" / LAST)
    groups = [group for group in kept["optimizer_states"][0]["param_groups"] if group["params"]]
    assert [(group["lr"], group["initial_lr"]) for group in groups] == [(0.1, 0.1)] * 2
    assert 0.1 in kept["lr_schedulers"][0]["base_lrs"]
    assert kept["config"]["model"]["init_args"]["policy"]["init_args"]["optimization"]["lr"] == 0.1
    outcome = again("--trainer.max_steps", 8, "--model.policy.optimization.lr", 0.1)
    assert "changed" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data.envs.training", 3], ["data.envs.training", "2", "3"]),
        (["--data.envs.validation", 1], ["data.envs.validation", "0", "1"]),
        (["--data.storage.capacity", 1024], ["data.storage.capacity", "512", "1024"]),
        (["--data.id", "Acrobot-v1"], ["data.id", "CartPole-v1", "Acrobot-v1"]),
        (["--seed_everything", 3], ["seed_everything", "0", "3"]),
        (["--model.policy", "modules.policies.actor_critic.PPO"], ["model.policy", "QLearning", "PPO"]),
        (["--model.policy.network.hidden", "[32]"], ["model.policy.network.hidden", "[128, 128]", "[32]"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_what_cannot_change_on_the_way_is_refused(again, tmp_path, arguments, words):
    assert again("--trainer.max_steps", 8, *arguments).refused(*words)


def test_a_refused_start_leaves_the_record_of_the_run(run, again, tmp_path):
    assert again("--trainer.max_steps", 4).code == 0
    folder = tmp_path / "again"
    files = [folder / name for name in ("config.yaml", "reproduce.json")]
    before = [file.read_bytes() for file in files]
    for arguments in (["--model.policy.network.hidden", "[32]"], ["--data.sampling.sequence_length", 200]):
        assert again("--trainer.max_steps", 8, *arguments).code == 2
        gc.collect()  # unlocks the store
        assert [file.read_bytes() for file in files] == before, arguments
    assert again("--trainer.max_steps", 8).code == 0
    assert yaml.safe_load(files[0].read_text())["trainer"]["max_steps"] == 8
    assert len(json.loads(files[1].read_text())) == len(json.loads(before[1])) + 1
    # A run that is over records its start as well.
    assert again("--trainer.max_steps", 8, "--model.policy.optimization.lr", 0.1).code == 0
    assert (
        yaml.safe_load(files[0].read_text())["model"]["init_args"]["policy"]["init_args"]["optimization"]["lr"] == 0.1
    )


def test_a_run_that_is_extended_logs_as_one_in_one_piece(run, again, tmp_path):
    assert run(*DQN, "--trainer.default_root_dir", tmp_path / "straight", "--trainer.max_steps", 10).code == 0
    assert again("--trainer.max_steps", 10).code == 0
    straight, extended = (logged(tmp_path / name) for name in ("straight", "again"))
    assert straight == [(str(step), str(step // 4)) for step in range(10)]
    assert extended == straight
    one, other = (checkpoints.load(tmp_path / name / LAST)[1]["state_dict"] for name in ("straight", "again"))
    assert all(not isinstance(value, torch.Tensor) or torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_in_pieces_of_epochs_logs_as_one_in_one_piece(run, tmp_path):
    """Epochs of four updates: two pieces end within an epoch."""
    for name, ends in {"straight": [10], "pieces": [3, 6, 8, 10]}.items():
        for end in ends:
            arguments = ["--trainer.default_root_dir", tmp_path / name, "--trainer.max_steps", end]
            assert run(*DQN, *arguments, *([] if end == ends[0] else ["--ckpt_path", "last"])).code == 0
    assert logged(tmp_path / "pieces") == logged(tmp_path / "straight")
    straight, pieces = (checkpoints.load(tmp_path / name / LAST)[1] for name in ("straight", "pieces"))
    assert straight["epoch"] == 3
    assert pieces["loops"]["fit_loop"] == straight["loops"]["fit_loop"]


def test_a_longer_epoch_begins_after_the_one_that_ended(again, tmp_path):
    assert again("--trainer.max_steps", 13, "--trainer.limit_train_batches", 8).code == 0
    assert [int(epoch) for _, epoch in logged(tmp_path / "again")] == [0] * 4 + [1] * 8 + [2]


def logged(folder: Path) -> list[tuple[str, str]]:
    """The step and the epoch of every row that the learner logged."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [(row["step"], row["epoch"]) for row in csv.DictReader(file) if row["epoch"]]
