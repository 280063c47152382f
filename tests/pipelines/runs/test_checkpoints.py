"""A checkpoint is all that is needed to build what a run trained."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml

from modules.agent import Agent
from modules.errors import UserError
from modules.frames.unet import UNet
from modules.policies.q_learning import QLearning
from modules.states.mlp_ensemble import MLPEnsemble
from pipelines import cli
from pipelines.runs import checkpoints

LAST = Path("checkpoints") / "last.ckpt"
AGENT = {
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
        "logger": False,
        "callbacks+": [{"class_path": "pipelines.callbacks.acting.collect.Collect", "init_args": {"prefill": 100}}],
    },
}
"""A model-free and a model-based part, on vectors."""


@pytest.fixture(scope="module")
def agent(tmp_path_factory) -> Path:
    """The checkpoint of a short run of an agent."""
    folder = tmp_path_factory.mktemp("agent")
    (folder / "agent.yaml").write_text(yaml.safe_dump(AGENT))
    cli.main(["fit", "--config", str(folder / "agent.yaml"), "--trainer.default_root_dir", str(folder / "run")])
    return folder / "run" / LAST


@pytest.fixture
def edited(trained, tmp_path):
    """Write the checkpoint of the UNet's run with something about it changed."""

    def edited(change) -> Path:
        checkpoint = checkpoints.read(trained / LAST)
        change(checkpoint)
        torch.save(checkpoint, tmp_path / "edited.ckpt")
        return tmp_path / "edited.ckpt"

    return edited


def test_a_world_model_is_what_it_was(trained):
    torch.manual_seed(1)
    module, checkpoint = checkpoints.load(trained / LAST)
    assert isinstance(module, UNet)
    assert module.world_model is module
    assert not module.training
    assert module.spec == ((1, 84, 84), 4, 6)
    assert module.size == "debug"
    assert module.updates == checkpoint["global_step"] == 4
    for name, value in module.state_dict().items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, checkpoint["state_dict"][name]), name


def test_an_agent_is_built_with_its_parts(agent):
    module, checkpoint = checkpoints.load(str(agent))
    assert isinstance(module, Agent)
    assert isinstance(module.world_model, MLPEnsemble)
    assert module.world_model is module.world_model
    assert isinstance(module.policy, QLearning)
    assert module.policy.updates == 2
    assert any(parameter.shape == (24, 4) for parameter in module.policy.parameters()), "not the width that was set"
    for name, value in module.state_dict().items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, checkpoint["state_dict"][name]), name


def test_an_agents_world_of_vectors_can_be_dreamed_in(agent):
    arguments = {"checkpoint": agent, "game": "CartPole-v1", "autoreset_mode": "SameStep"}
    env = gymnasium.make_vec("pipelines.dreams.environment:dreamcade/Dream-v0", num_envs=5, **arguments)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (5, 4)
    assert (np.abs(observation) < 1.5).all(), "no opening of CartPole is so far out"
    observation, reward, *_ = env.step(np.ones(5, np.int64))
    assert observation in env.observation_space
    assert np.isfinite(reward).all()
    with pytest.raises(UserError, match="is of CartPole-v1, not of pong"):
        gymnasium.make_vec("dreamcade/Dream-v0", checkpoint=agent, game="pong")


def test_what_is_wrong_with_a_part_is_said_of_the_part(agent, tmp_path):
    for name, value, words in (
        (
            "class_path",
            "modules.states.mlp_ensemble.MLPEnsembl",
            "there is no class .*MLPEnsembl, the nearest is .*MLPEnsemble",
        ),
        ("init_args", {"sampling": "dreams"}, "the nearest is dream"),
        ("init_args", {"num_members": 0}, "built: model.num_elites must be"),
        ("class_path", "modules.policies.q_learning.QLearning", "not correspond to a subclass of WorldModel$"),
    ):
        checkpoint = checkpoints.read(agent)
        part = checkpoint["config"]["model"]["init_args"]["world_model"]
        part[name] = {**part[name], **value} if isinstance(value, dict) else value
        torch.save(checkpoint, tmp_path / "edited.ckpt")
        with pytest.raises(UserError, match=words) as raised:
            checkpoints.load(tmp_path / "edited.ckpt")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("config"), "keeps no config: expected a checkpoint that"),
        (lambda c: c.pop("spec"), "keeps no spec"),
        (lambda c: c["config"]["model"].update(class_path="modules.frames.unett.UNet"), "modules.frames.unet.UNet"),
        (lambda c: c["config"]["model"].update(class_path="pathlib.Path"), "cannot be built"),
        (lambda c: c["config"]["model"]["init_args"].update(colour=3), "colour"),
        (lambda c: c["config"]["model"]["init_args"].update(size="smal"), "the nearest is small"),
        (lambda c: c["config"]["model"]["init_args"].update(size="small"), "do not fit UNet: .{1,160}$"),
        (lambda c: c["state_dict"].popitem(), r"do not fit UNet: .* is missing, expected \(64,\)"),
        (lambda c: c.pop("state_dict"), "keeps no state_dict"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(edited, change, words):
    with pytest.raises(UserError, match=words) as raised:
        checkpoints.load(edited(change))
    assert "\n" not in str(raised.value)
    assert "edited.ckpt" in str(raised.value)


def test_a_gpu_that_is_not_there(trained):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="0 GPUs"):
        checkpoints.load(trained / LAST, device="cuda")
