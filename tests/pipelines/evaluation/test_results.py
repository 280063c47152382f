import json

import numpy as np
import pytest

from modules.errors import UserError
from pipelines.evaluation import results
from tests.pipelines.evaluation.report.runs import evaluation


def test_what_is_appended_is_read(tmp_path):
    first, second = evaluation(3.0), evaluation(4.0, env_steps=7, checkpoint="last.ckpt", final=False)
    results.append(tmp_path / "new", first)
    results.append(tmp_path / "new", second)
    assert results.read(tmp_path / "new") == [first, second]
    assert (first.score, second.score) == (3.0, 4.0)
    assert first.returns.tolist() == [4.0, 2.0]


def test_numpys_numbers_are_written(tmp_path):
    episode = {"seed": np.int64(1), "return": np.float32(2), "length": np.int64(3), "finished": np.bool_(True)}
    results.append(tmp_path, evaluation(episodes=[episode], env_steps=np.int64(5)))
    (line,) = results.read(tmp_path)
    assert line.env_steps == 5
    assert line.episodes == [{"seed": 1, "return": 2.0, "length": 3, "finished": True}]


def test_a_line_that_was_cut_is_left_out_and_then_taken_away(tmp_path):
    results.append(tmp_path, evaluation(1.0))
    path = tmp_path / results.FILE
    path.write_bytes(path.read_bytes() + path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="cut"):
        assert len(results.read(tmp_path)) == 1
    results.append(tmp_path, evaluation(2.0))
    assert [line.score for line in results.read(tmp_path)] == [1.0, 2.0]


def test_a_last_line_without_its_end_is_whole(tmp_path):
    results.append(tmp_path, evaluation(1.0))
    path = tmp_path / results.FILE
    path.write_bytes(path.read_bytes().rstrip())
    assert len(results.read(tmp_path)) == 1
    results.append(tmp_path, evaluation(2.0))
    assert [line.score for line in results.read(tmp_path)] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"game": None}, "game must be of type str"),
        ({"env_steps": "many"}, "env_steps must be of type int"),
        ({"env_steps": -1}, "env_steps must be a number from 0 on"),
        ({"game": "pong\x1b[2J"}, "game must be a line"),
        ({"experiment": "x" * 1000}, "experiment must be a line of at most 500 letters"),
        ({"episodes": []}, "without episodes"),
        ({"episodes": [{"seed": 1, "return": 10**400, "length": 3, "finished": True}]}, "an episode has"),
        ({"episodes": [{"seed": 1, "return": 2.0}]}, "an episode has"),
        ({"episodes": [{"seed": 1, "return": "2", "length": 3, "finished": True}]}, "an episode has"),
    ],
)
def test_a_broken_line_is_named(tmp_path, change, words):
    results.append(tmp_path, evaluation())
    path = tmp_path / results.FILE
    path.write_text(path.read_text() + json.dumps(json.loads(path.read_text()) | change) + "\n")
    with pytest.raises(UserError, match=f"line 2: .*{words}"):
        results.read(tmp_path)


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("")
    (tmp_path / results.FILE).symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="is a link"):
        results.append(tmp_path, evaluation())
    assert (tmp_path / "precious").read_text() == ""


def test_no_json_and_no_file(tmp_path):
    with pytest.raises(UserError, match="nothing was evaluated in this run"):
        results.read(tmp_path)
    (tmp_path / results.FILE).write_text("score 3\n")
    with pytest.raises(UserError, match="line 1: this is no JSON"):
        results.read(tmp_path)


def test_human_normalized():
    assert results.human_normalized("pong", -20.7) == 0
    assert results.human_normalized("pong", 14.6) == 1
    assert results.human_normalized("boxing", 6.1) == pytest.approx(0.5)
    assert results.human_normalized("CartPole-v1", 500.0) is None
