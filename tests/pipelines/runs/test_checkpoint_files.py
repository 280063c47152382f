"""A checkpoint is written whole or not at all, and whatever happens to it is noticed."""

import re
import resource
import shutil

import pytest
import torch
import yaml

from modules.errors import UserError
from pipelines import cli
from pipelines.machine.provenance import commit, version
from pipelines.runs import checkpoint_files, checkpoints
from pipelines.runs.checkpoint_files import DamagedError, read, write
from tests.pipelines.runs.test_checkpoints import AGENT, LAST


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """The folder of a run of an agent on CartPole, in two goes, and its configuration beside it."""
    folder = tmp_path_factory.mktemp("agent")
    (folder / "agent.yaml").write_text(yaml.safe_dump(AGENT))
    command = ["fit", "--config", str(folder / "agent.yaml"), "--trainer.default_root_dir", str(folder / "run")]
    cli.main(command)
    cli.main([*command, "--ckpt_path", "last", "--trainer.max_steps", "4"])
    return folder


@pytest.fixture
def go_on(run, agent, tmp_path):
    """Copy the run, let a test do what it wants with the folder, and go on for two updates."""
    folder = shutil.copytree(agent / "run", tmp_path / "run")

    def go_on(*arguments):
        command = ["fit", "--config", agent / "agent.yaml", "--trainer.default_root_dir", folder, "--ckpt_path", "last"]
        return run(*command, "--trainer.max_steps", 6, *arguments)

    go_on.folder = folder
    return go_on


def small(path, **content):
    write({"weight": torch.arange(5.0), **content}, path)
    return path


def test_torch_reads_it_as_it_is(tmp_path):
    path = small(tmp_path / "a.ckpt")
    assert torch.equal(torch.load(path, weights_only=True)["weight"], torch.arange(5.0))
    assert torch.equal(read(path)["weight"], torch.arange(5.0))
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("harm", [lambda c, at: c[:at], lambda c, at: c[:at] + bytes([c[at] ^ 1]) + c[at + 1 :]])
def test_a_cut_and_a_flipped_bit_are_noticed_wherever_they_are(tmp_path, harm):
    content = small(tmp_path / "a.ckpt").read_bytes()
    for at in [*range(0, len(content), 11), *range(len(content) - 120, len(content))]:
        (tmp_path / "harmed.ckpt").write_bytes(harm(content, at))
        with pytest.raises(DamagedError, match=r"^[^\n]*damaged[^\n]*$"):
            read(tmp_path / "harmed.ckpt")


def test_the_one_before_the_last_is_kept(tmp_path):
    for step in (1, 2, 3):
        small(tmp_path / "last.ckpt", step=step)
    assert read(tmp_path / "last.ckpt")["step"] == 3
    assert read(tmp_path / "previous.ckpt")["step"] == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_leaves_the_last_one_whole(tmp_path):
    small(tmp_path / "last.ckpt", step=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="large"):
            small(tmp_path / "last.ckpt", more=torch.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read(tmp_path / "last.ckpt")["step"] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_one_from_before_there_were_seals_is_read(tmp_path):
    torch.save({"weight": torch.ones(100)}, tmp_path / "old.ckpt")
    assert read(tmp_path / "old.ckpt")["weight"].sum() == 100
    content = bytearray((tmp_path / "old.ckpt").read_bytes())
    content[content.index(torch.ones(100).numpy().tobytes()) + 50] ^= 1
    (tmp_path / "old.ckpt").write_bytes(content)
    with pytest.raises(DamagedError, match="checksum"):
        read(tmp_path / "old.ckpt")


def test_another_format_is_refused(tmp_path):
    path = small(tmp_path / "a.ckpt", format_version=checkpoint_files.FORMAT_VERSION + 1, version="9.0")
    with pytest.raises(UserError, match=r"format 3, of dreamcade 9.0, .* reads format 2, install a newer one"):
        read(path)
    path = small(tmp_path / "b.ckpt", format_version=1, version="0.1.0", commit="0b4fc46")
    with pytest.raises(UserError, match=r"format 1, .* commit 0b4fc46: .* train it again, or use the commit"):
        read(path)


def test_it_says_where_it_comes_from(agent):
    kept = read(agent / "run" / LAST)
    assert kept["format_version"] == checkpoint_files.FORMAT_VERSION
    assert (kept["version"], kept["commit"]) == (version(), commit())
    assert kept["world"] == "CartPole-v1"
    assert kept["description"]["protocol"] == {"name": "gymnasium", "max_episode_steps": 500}
    assert kept["config"] == yaml.safe_load((agent / "run" / "config.yaml").read_text()) | {"ckpt_path": None}


# A run that goes on.


def test_a_damaged_last_checkpoint_is_replaced_by_the_one_before(go_on):
    kept = go_on.folder / "checkpoints"
    content = (kept / "last.ckpt").read_bytes()
    (kept / "last.ckpt").write_bytes(content[: len(content) // 2])
    outcome = go_on()
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if "last.ckpt is no whole checkpoint" in line]
    assert f"resuming from the checkpoint before it, {kept / 'previous.ckpt'}" in line
    assert read(kept / "last.ckpt")["global_step"] == 6
    assert (kept / "damaged.ckpt").read_bytes() == content[: len(content) // 2]


def test_two_damaged_checkpoints_are_refused_and_left_alone(go_on):
    for path in (go_on.folder / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    before = {path: path.read_bytes() for path in go_on.folder.rglob("*") if path.is_file()}
    assert go_on().refused("last.ckpt", "previous.ckpt", "damaged")
    assert before == {path: path.read_bytes() for path in go_on.folder.rglob("*") if path.is_file()}


def test_what_the_ring_has_overwritten_does_not_come_back(go_on):
    kept = go_on.folder / "checkpoints"
    before = shutil.copy(kept / "last.ckpt", go_on.folder)
    # 2 environments of 100 rows and 2,048 spare ones: the ring comes round.
    steps = ["--trainer.callbacks.steps_per_update", 200.0, "--trainer.max_steps", 30]
    assert go_on(*steps).code == 0
    shutil.move(before, kept / "previous.ckpt")
    (kept / "last.ckpt").unlink()
    outcome = go_on(*steps)
    assert outcome.code == 2
    told = [line for line in outcome.err.splitlines() if line.startswith("dreamcade: ")]
    assert "resuming from the checkpoint before it" in told[0]
    assert re.search("cannot be cut back to row 5.*--init_from", told[1])


# Weights alone.


@pytest.fixture
def begin(run, agent, tmp_path):
    """Begin a run with the weights of the agent's, without learning anything."""
    still = ["--model.world_model.optimization", "{lr: 0, weight_decay: 0}", "--model.policy.optimization.lr", 0]
    command = ["fit", "--config", agent / "agent.yaml", "--trainer.default_root_dir", tmp_path / "new", *still]
    return lambda *arguments: run(*command, "--trainer.max_steps", 1, "--init_from", agent / "run" / LAST, *arguments)


def test_a_run_begins_with_the_weights_of_another_and_nothing_else(begin, agent, tmp_path):
    assert begin("--seed_everything", 7).code == 0
    before, after = read(agent / "run" / LAST), read(tmp_path / "new" / LAST)
    learned = [name for name in before["state_dict"] if name.endswith(("weight", "bias")) and "target" not in name]
    assert len(learned) > 8
    for name in learned:
        assert torch.equal(before["state_dict"][name], after["state_dict"][name]), name
    assert before["global_step"] == 4
    assert after["global_step"] == after["state_dict"]["policy._extra_state"]["updates"] == 1
    assert after["config"]["init_from"] == str(agent / "run" / LAST)


def test_another_worlds_weights_are_refused_or_left_fresh(begin, tmp_path):
    acrobot = ("--data.id", "Acrobot-v1")
    assert begin(*acrobot).refused("do not fit Agent", "input_mean is (4,), expected (6,)", "--init_fresh true")
    assert not (tmp_path / "new" / LAST).exists()
    outcome = begin(*acrobot, "--init_fresh", "true", "--trainer.default_root_dir", tmp_path / "fresh")
    assert outcome.code == 0, outcome.err
    assert "kept initial values of: " in outcome.out
    assert "is (24, 4), expected (24, 6)" in outcome.out


def test_one_begins_or_goes_on(begin, run, agent):
    assert begin("--ckpt_path", "last").refused("--init_from begins", "--ckpt_path resumes")
    validate = ["validate", "--config", agent / "agent.yaml", "--ckpt_path", agent / "run" / LAST]
    assert run(*validate, "--init_from", agent / "run" / LAST).refused("--init_from is for fit")


# Files from strangers.


def test_a_checkpoint_imports_nothing_that_is_not_dreamcades(run, agent, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stranger.py").write_text(
        "from pathlib import Path\nfrom modules.policies.q_learning import QLearning\n"
        f"Path({str(tmp_path / 'imported')!r}).touch()\nclass Policy(QLearning): pass\n"
    )
    kept = read(agent / "run" / LAST)
    policy = kept["config"]["model"]["init_args"]["policy"]
    for name in ("stranger.Policy", "os.system", "pipelines.cli.os.system"):
        kept["config"]["model"]["init_args"]["policy"] = {**policy, "class_path": name}
        write(kept, tmp_path / "edited.ckpt")
        assert run("evaluate", tmp_path / "edited.ckpt").refused("cannot be built: it names")
    kept["config"]["model"]["init_args"]["policy"] = policy
    kept["config"]["data"]["init_args"]["id"] = "stranger:CartPole-v1"
    write(kept, tmp_path / "edited.ckpt")
    assert run("evaluate", tmp_path / "edited.ckpt").refused("names stranger", "DREAMCADE_TRUST=stranger")
    assert not (tmp_path / "imported").exists()
    kept = read(agent / "run" / LAST)
    kept["config"]["model"]["init_args"]["policy"]["class_path"] = "stranger.Policy"
    write(kept, tmp_path / "edited.ckpt")
    monkeypatch.setenv("DREAMCADE_TRUST", "stranger")
    module, _ = checkpoints.load(tmp_path / "edited.ckpt")
    assert type(module.policy).__module__ == "stranger"


def test_what_does_not_fit_its_weights_takes_no_memory(agent, tmp_path):
    kept = read(agent / "run" / LAST)
    kept["config"]["model"]["init_args"]["world_model"]["init_args"]["hidden_size"] = 10**8
    write(kept, tmp_path / "edited.ckpt")
    with pytest.raises(UserError, match="do not fit Agent"):
        checkpoints.load(tmp_path / "edited.ckpt")
