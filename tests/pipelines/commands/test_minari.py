"""Others' Atari data trains our models, and ours goes out and comes back, by the commands alone."""

import ale_py
import gymnasium

from datamodules.replay.store import ReplayStore
from pipelines.runs import checkpoints
from tests.datamodules.minari.test_minari import dataset, play

gymnasium.register_envs(ale_py)


def test_a_model_learns_from_others_data(run, tmp_path):
    env = gymnasium.make("ALE/Breakout-v5")
    dataset(tmp_path / "minari", "breakout/random-v0", play(env, 60, 4), env)
    arguments = ["import", "breakout/random-v0", "store", "--path", "minari", "--size", "[42, 42]", "--num_envs", 4]
    outcome = run(*arguments)
    assert outcome.code == 0, outcome.err
    assert "store: 244 rows in 4 environments" in outcome.out
    assert ReplayStore.open(tmp_path / "store").observation_shape == (1, 42, 42)
    outcome = run(
        *("fit", "--config", "unet", "--config", "debug", "--trainer.max_steps", 2),
        *("--data.path", tmp_path / "store", "--data.game", "Breakout", "--data.protocol", "null"),
        *("--trainer.default_root_dir", tmp_path / "run"),
    )
    assert outcome.code == 0, outcome.err
    assert checkpoints.read(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2


def test_a_store_goes_out_and_comes_back(run, pong, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    assert run("export", pong, "pong/random-v0").code == 0
    assert run("import", "pong/random-v0", "again").code == 0
    for name in ("observation.bin", "rows.bin", "meta.json"):
        assert (tmp_path / "again" / name).read_bytes() == (pong / name).read_bytes()


def test_bad_input(run, pong, tmp_path):
    assert run("export", "nowhere", "pong-v0").refused("nowhere", "not a replay store")
    assert run("export", pong, "pong", "--path", tmp_path).refused("expected name-v0")
    assert run("import", "pong-v0", "store", "--path", tmp_path).refused("pong-v0", "downloads nothing")
    assert run("import", "pong-v0", "store", "--colour", "rgb").refused("colour", "color")
