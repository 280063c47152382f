"""World Models through the real command: every use of it by `class_path` alone, pictures, and mistakes, on Boxing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from modules.latents.mdn_rnn import MDNRNN
from pipelines.dreams.environment import DreamVectorEnv
from pipelines.evaluation.results import read
from pipelines.runs import checkpoints

MODEL = "modules.latents.mdn_rnn.MDNRNN"
PROJECT = Path(__file__).resolve().parents[2]
LAST = Path("checkpoints") / "last.ckpt"
VAE = ("--model.world_model.vae", "modules.latents.vae.VAE", "--model.world_model.vae.channels", "[4,4,4]")
SMALL = (
    *("--model.world_model.vae.channels", "[4,4,4]", "--model.rounds.model_updates", 2, "--data.envs.training", 2),
    *("--data.sampling", "{batch_size: 2, sequence_length: 8, validation_batches: 2}", "--data.storage.capacity", 600),
)


@pytest.fixture
def evolve(run, tmp_path):
    """Run the small experiment for four updates, two rounds; further arguments go on top, as do its callbacks'."""

    def evolve(*arguments, folder="run", debug=True, **changes):
        changes = {"Collect": {"prefill": 300, "steps_per_round": 20}} | changes
        both_at_once = {"world_model": {"init_args": {"vae_updates": None}}}
        content = {"model": {"init_args": both_at_once}, "callbacks+": [changes]}
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(content))
        options = ("--config", "configs/debug.yaml") if debug else ("--trainer.max_steps", 4)
        return run(
            *("fit", "--config", "world_models__evolution_small", "--config", path, *options, *SMALL),
            *("--trainer.default_root_dir", tmp_path / folder, *arguments),
        )

    return evolve


@pytest.mark.parametrize("experiment", ["unet__dyna_q", "unet__mbpo", "unet__search"])
def test_whatever_uses_a_world_model_uses_this_one(run, tmp_path, experiment):
    """The product table's cells: the class_path differs from the UNet's experiments, and latents are not augmented."""
    folder = tmp_path / "run"
    outcome = run(
        *("fit", "--config", f"configs/experiment/{experiment}.yaml", "--config", "configs/debug.yaml"),
        *("--model.world_model", MODEL, *VAE, "--model.world_model.hidden_size", 16, "--data.size", "[42,42]"),
        *("--model.rounds.model_updates", 1, "--model.rounds.policy_updates", 1, "--data.sampling.batch_size", 2),
        *("--trainer.default_root_dir", folder),
        *(() if experiment == "unet__search" else ("--model.policy.augmentation", "null")),  # it changes pictures
    )
    assert outcome.code == 0, outcome.err
    module, kept = checkpoints.load(folder / LAST)
    assert kept["global_step"] == 4
    assert isinstance(module.world_model, MDNRNN)
    assert len(read(folder)) == (2 if experiment == "unet__search" else 1)


def test_the_product_s_cell_of_its_own(evolve, run, tmp_path):
    """Evolution: rounds of two updates, of which the second collects by the controller that evolved in the first."""
    outcome, folder = evolve(), tmp_path / "run"
    assert outcome.code == 0, outcome.err
    assert "evolved 4 generations in dreams" in outcome.out
    module, kept = checkpoints.load(folder / LAST)
    assert module.policy.weight.any()
    assert all(value.isfinite().all() for value in module.state_dict().values() if isinstance(value, torch.Tensor))
    (state,) = (state for key, state in kept["callbacks"].items() if key.startswith("Evolve"))
    assert [row["update"] for row in state["history"]] == [1, 1, 3, 3]
    assert state["search"] is None
    (evaluation,) = read(folder)[-1:]
    assert evaluation.final
    assert run("evaluate", folder / LAST, "--episodes", 2, "--max_steps", 30).code == 0


def has_half_precision_lstm() -> bool:
    """Whether this processor runs an LSTM in bfloat16 at all."""
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            torch.nn.LSTM(4, 4, batch_first=True)(torch.zeros(2, 3, 4))
    except RuntimeError:
        return False
    return True


@pytest.mark.skipif(not has_half_precision_lstm(), reason="this processor runs no LSTM in bfloat16")
def test_mixed_precision(evolve, tmp_path):
    assert evolve("--trainer.precision", "bf16-mixed").code == 0
    state = checkpoints.read(tmp_path / "run" / LAST)["state_dict"]
    floats = [value for value in state.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in floats)


def test_pictures(evolve, tmp_path):
    """Of 42 x 42 pixels, twice as large: their rows and columns are as many as they should be."""
    assert evolve().code == 0
    sizes = {
        "reconstructions": (10, 3),
        "samples": (10, 3),
        "traversals": (10, 8),
        "temperatures": (10, 5),
        "evolution": None,
        "dream": None,
    }
    for name, cells in sizes.items():
        picture = Image.open(tmp_path / "run" / f"{name}.png")
        assert cells is None or picture.size == (84 * cells[0], 84 * cells[1]), name
        assert np.asarray(picture.convert("L")).std() > 1


def test_a_vae_by_itself(run, tmp_path):
    """It trains, validates, and a policy may learn from what it sees."""
    folder = tmp_path / "run"
    arguments = ("--config", "configs/experiment/vae.yaml", "--config", "configs/debug.yaml")
    options = (*arguments, "--data.sampling.batch_size", 4, "--model.channels", "[4,4,4]")
    outcome = run("fit", *options, "--trainer.default_root_dir", folder)
    assert outcome.code == 0, outcome.err
    assert {path.stem for path in folder.glob("*.png")} == {"reconstructions", "samples", "traversals"}
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"validation/reconstruction", "validation/kl", "train/active"} <= set(header)
    assert run("validate", *options, "--ckpt_path", folder / LAST).code == 0


def test_a_vae_that_was_trained_by_itself_is_reused(evolve, run, tmp_path):
    """It starts an MDN-RNN, and stands still where no update is its own."""
    folder = tmp_path / "vae"
    shape = ("--data.size", "[42,42]", "--data.color", "grey", "--data.game", "Boxing")
    outcome = run(
        *("fit", "--config", "configs/experiment/vae.yaml", "--config", "configs/debug.yaml", *shape),
        *("--model.channels", "[4,4,4]", "--trainer.default_root_dir", folder),
    )
    assert outcome.code == 0, outcome.err
    take = ("--trainer.callbacks+=pipelines.callbacks.learning.pretrained.Pretrained", "--trainer.callbacks.checkpoint")
    take = (*take, folder / LAST, "--trainer.callbacks.part")
    assert evolve("--model.world_model.vae_updates", 0, *take, "vae").code == 0
    trained, _ = checkpoints.load(folder / LAST)
    module, _ = checkpoints.load(tmp_path / "run" / LAST)
    ours, theirs = module.world_model.vae.state_dict(), trained.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if isinstance(ours[name], torch.Tensor))
    assert evolve(*take, "vea", folder="wrong").refused("MDNRNN has no part vea")


def test_it_is_an_environment(evolve, tmp_path):
    assert evolve().code == 0
    environment = DreamVectorEnv(checkpoint=tmp_path / "run" / LAST, num_envs=3, max_episode_steps=5)
    first, _ = environment.reset(seed=1)
    after, reward, _, truncated, _ = environment.step(np.array([0, 1, 2]))
    assert first.shape == after.shape == (3, 1, 42, 42)
    assert np.isfinite(reward).all() & ~truncated.any()


@pytest.mark.slow
def test_two_processes_share_a_population_out(tmp_path):
    """Both keep the same controller and weights, and a generation is as many dreams as in one process."""
    folder = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "pipelines.cli", "fit"),
        *("--config", "configs/size/world_models__evolution_small.yaml", "--config", "configs/debug.yaml"),
        *(str(word) for word in SMALL),
        *("--trainer.devices", "2", "--trainer.strategy", "ddp_find_unused_parameters_true"),
        *("--trainer.default_root_dir", str(folder)),
        "--trainer.callbacks+=tests.runs.test_agents.KeepWeights",
    ]
    subprocess.run(command, cwd=PROJECT, check=True, timeout=300)
    first, second = (torch.load(folder / f"weights{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first if isinstance(first[name], torch.Tensor))
    assert first["policy.weight"].any()
    (state,) = (s for key, s in checkpoints.read(folder / LAST)["callbacks"].items() if key.startswith("Evolve"))
    steps = [row["dreamed_steps"] for row in state["history"]]
    assert steps[1] - steps[0] == 4 * 2 * 20
    assert len(state["generators"]) == 2


# Mistakes.


def test_a_collapsed_mixture_is_named_and_the_last_good_checkpoint_kept(evolve, tmp_path):
    outcome = evolve(
        *("--model.world_model.optimization", "{lr: 1.0e+30, warmup: 0, decay: false}"),
        *("--trainer.gradient_clip_val", "null", "--trainer.max_steps", 50, "--trainer.limit_val_batches", 0),
        *("--debug", "false", "--model.rounds.model_updates", 100),  # longer rounds: nothing evolves meanwhile
        *("--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.save_top_k", 0),
        *("--trainer.callbacks.save_last", "true"),
        *("--trainer.callbacks.every_n_train_steps", 1, "--trainer.callbacks.enable_version_counter", "false"),
    )
    last = tmp_path / "run" / LAST
    assert outcome.refused("the mixture density of the MDN-RNN collapsed", "last good checkpoint", str(last))
    assert checkpoints.read(last)["global_step"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.world_model.temperature", "-0.1"], ["temperature must be at least 0", "-0.1"]),
        (["--model.world_model.temprature", "1"], ["temprature", "temperature"]),
        (["--model.world_model.vae.latent_size", "0"], ["latent_size", "at least 1"]),
        (["--data.game", "Boxng"], ["Boxng", "boxing"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_argument(evolve, tmp_path, arguments, words):
    assert evolve(*arguments).refused(*words)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_vectors_have_no_pictures(run, tmp_path):
    outcome = run(
        *("fit", "--config", "configs/experiment/ensemble__mbpo.yaml", "--config", "configs/debug.yaml"),
        *("--model.world_model", MODEL, *VAE, "--trainer.default_root_dir", tmp_path / "run"),
    )
    assert outcome.refused("the VAE encodes frames", "modules.states")


def test_a_controller_of_another_game_is_refused(evolve, tmp_path):
    """Boxing has 18 actions, Pong 6."""
    assert evolve().code == 0
    last = tmp_path / "run" / LAST
    pong = ("--data.game", "Pong")
    for options in ({"Evolve": {"start": str(last)}}, {}):
        resume = () if options else ("--ckpt_path", last)
        outcome = evolve(*pong, *resume, folder=f"pong{len(options)}", **options)
        words = ("has 18 actions", "this world has 6 actions", "action set") if options else ("data.game", "Pong")
        assert outcome.refused(*words)


def test_a_population_larger_than_memory_is_refused(evolve):
    outcome = evolve(debug=False, Evolve={"population": 10**8})
    assert outcome.refused("a population of 100000000", "GiB are free", "at most")
