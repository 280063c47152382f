import pytest

from modules.errors import UserError
from pipelines.evaluation import results
from pipelines.evaluation.report.runs import find, load
from tests.pipelines.evaluation.report.runs import evaluation, write


def test_runs_are_found_beneath_a_folder_and_once(tmp_path):
    first, second = write(tmp_path / "a" / "0", {5: 1.0}), write(tmp_path / "a" / "1", {5: 1.0}, seed=1)
    assert find([tmp_path]) == [first, second]
    assert find([second, tmp_path / "a", tmp_path / "b" / ".." / "a" / "0"][:2]) == [second, first]
    assert len(find([first, tmp_path / "a" / ".." / "a" / "0"])) == 1


def test_evaluations_are_ordered_and_the_final_one_counts(tmp_path):
    for steps, score, final in (
        (20, 2.0, False),
        (10, 1.0, False),
        (20, 9.0, True),
        (20, 3.0, False),
        (10, 4.0, False),
    ):
        results.append(tmp_path, evaluation(score, env_steps=steps, final=final))
    (run,) = load([tmp_path])
    assert run.steps.tolist() == [10, 20]
    assert run.scores.tolist() == [4.0, 9.0], "a resumed run repeats an evaluation: the later one counts"
    assert run.last.final


def test_another_policy_is_another_curve(tmp_path):
    for steps, policy in ((10, "sampled"), (10, "greedy"), (20, "sampled"), (20, "greedy"), (15, "sampled")):
        results.append(tmp_path, evaluation(steps, env_steps=steps, policy=policy))
    (run,) = load([tmp_path])
    assert run.steps.tolist() == [10, 20]
    assert {line.policy for line in run.evaluations} == {"greedy"}


def refused(tmp_path, words):
    with pytest.raises(UserError, match=words) as caught:
        load([tmp_path])
    assert "\n" not in str(caught.value)


def test_mixed_protocols(tmp_path):
    write(tmp_path / "still", {5: 1.0})
    sticky = {**evaluation().protocol, "repeat_action_probability": 0.25}
    write(tmp_path / "sticky", {5: 1.0}, game="boxing", protocol=sticky)
    refused(tmp_path, r"repeat_action_probability 0.25: \S*sticky; repeat_action_probability 0.0: \S*still")


def test_mixed_variants_of_one_control_task_but_not_of_two(tmp_path):
    write(tmp_path / "0", {5: 1.0}, environment="control", game="CartPole-v1", protocol={"max_steps": 500})
    write(tmp_path / "1", {5: 1.0}, environment="control", game="MountainCar-v0", protocol={"max_steps": 200})
    assert len(load([tmp_path])) == 2
    write(tmp_path / "2", {5: 1.0}, environment="control", game="CartPole-v1", seed=1, protocol={"max_steps": 200})
    refused(tmp_path, r"max_steps 500: \S*0; max_steps 200: \S*2")


def test_mixed_environments(tmp_path):
    write(tmp_path / "0", {5: 1.0})
    write(tmp_path / "1", {5: 1.0}, environment="control", game="CartPole-v1")
    refused(tmp_path, r"one environment.*control: \S*1; atari: \S*0")


def test_the_same_run_twice(tmp_path):
    write(tmp_path / "0", {5: 1.0})
    write(tmp_path / "1", {5: 1.0})
    refused(tmp_path, r"0 and \S*1 are all dqn on pong with seed 0")


def test_mixed_policies(tmp_path):
    write(tmp_path / "0", {5: 1.0})
    write(tmp_path / "1", {5: 1.0}, seed=1, policy="sampled")
    refused(tmp_path, r"2 policies: greedy: \S*0; sampled: \S*1")


def test_two_runs_in_one_file(tmp_path):
    write(tmp_path, {5: 1.0})
    write(tmp_path, {5: 1.0}, seed=1)
    refused(tmp_path, "has evaluations of 2 seeds")


def test_nothing_there(tmp_path):
    (tmp_path / "pong").mkdir()
    with pytest.raises(UserError, match=r"there is no folder \S*pnog, the nearest is \S*pong$"):
        load([tmp_path / "pnog"])
    refused(tmp_path / "pong", "no evaluations found")
    (tmp_path / "pong" / results.FILE).touch()
    refused(tmp_path / "pong", "no evaluations found")
