import json
import subprocess
import sys

from pipelines.machine import provenance


def starts(folder) -> list[dict]:
    return json.loads((folder / "reproduce.json").read_text())


def test_a_run_says_how_to_repeat_every_start(run, tmp_path):
    folder = tmp_path / "run folder"
    arguments = ["fit", "--config", "dqn_cartpole", "--config", "debug", "--trainer.default_root_dir", folder]
    outcome = run(*arguments, "--trainer.max_steps", 2)
    assert outcome.code == 0, outcome.err
    (first,) = starts(folder)
    assert first["command"].startswith("dreamcade fit --config ")
    assert first["command"].endswith(f"--trainer.default_root_dir '{folder}' --trainer.max_steps 2")
    assert first["folder"] == str(tmp_path)
    assert first["commit"] == provenance.git("rev-parse", "HEAD")
    assert first["versions"]["torch"] == provenance.installed_version("torch")
    assert first["machine"]["cores"] >= 1
    assert run(*arguments, "--trainer.max_steps", 4, "--ckpt_path", "last").code == 0
    again, second = starts(folder)
    assert again == first
    assert "--ckpt_path last" in second["command"]


def test_a_start_names_the_files_that_are_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PROJECT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["dreamcade", "fit", "--data.game", "Ms. Pac-Man"])
    provenance.record_start(tmp_path)
    for command in (["init"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-m", "c"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    provenance.record_start(tmp_path)
    provenance.record_start(tmp_path)
    no_checkout, clean, changed = starts(tmp_path)
    assert no_checkout["command"] == "dreamcade fit --data.game 'Ms. Pac-Man'"
    assert (no_checkout["commit"], no_checkout["changed_files"]) == (None, [])
    assert len(clean["commit"]) == 40
    assert (clean["changed_files"], changed["changed_files"]) == ([], ["reproduce.json"])


def test_a_measurement_of_a_changed_checkout_says_so_unless_results_alone_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PROJECT", tmp_path)
    written, code = tmp_path / "benchmarks" / "results" / "a.json", tmp_path / "code.py"
    written.parent.mkdir(parents=True)
    written.write_text("{}")
    code.write_text("a")
    for command in (["init"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-m", "c"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    head = provenance.commit.__wrapped__()  # a process knows its commit once and for all
    assert len(head) == 12
    written.write_text("{ }")
    assert provenance.commit.__wrapped__() == head
    code.write_text("b")
    assert provenance.commit.__wrapped__() == head + "+"
