"""What a run that goes on finds of its loggers."""

import pytest

from pipelines.loggers import CSVLogger, _run_id


def log(folder, **metrics):
    logger = CSVLogger(folder)
    logger.log_metrics(metrics, step=1)
    logger.save()


def test_metrics_are_appended_to(tmp_path):
    log(tmp_path, a=1)
    log(tmp_path, a=2, b=3)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["a,b,step", "1,,1", "2,3,1"]


@pytest.mark.parametrize("content", [b"", b"step,a\n1,2,3,4\n", b"step,step\n1,2\n", b"\xff\0\n", b"a,b\n1,2\n"])
def test_what_is_no_table_is_kept_aside(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.warns(UserWarning, match="kept as metrics_damaged.csv"):
        log(tmp_path, a=1)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["a,step", "1,1"]
    assert (tmp_path / "metrics_damaged.csv").read_bytes() == content


@pytest.mark.parametrize("content", ["../../elsewhere", "", "x" * 100, "a b"])
def test_an_id_that_is_none_is_not_used(tmp_path, content):
    (tmp_path / "wandb_run_id.txt").write_text(content)
    name = _run_id(tmp_path)
    assert name.isalnum()
    assert _run_id(tmp_path) == name
