"""What a run that goes on finds of its loggers."""

import resource

import pytest

from pipelines.runs.loggers import CSVLogger, _run_id


def log(folder, **metrics):
    logger = CSVLogger(folder)
    logger.log_metrics(metrics, step=1)
    logger.save()


def test_metrics_are_appended_to(tmp_path):
    log(tmp_path, a=1)
    log(tmp_path, a=2, b=3)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["a,b,step", "1,,1", "2,3,1"]


def test_a_cut_last_line_does_not_spoil_the_next(tmp_path):
    log(tmp_path, a=1)
    with (tmp_path / "metrics.csv").open("ab") as file:
        file.write(b"1.2")
    log(tmp_path, a=2)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["a,step", "1,1", "2,1"]


def test_a_new_column_on_a_full_disk_leaves_what_there_was(tmp_path, monkeypatch):
    log(tmp_path, a=1)
    before = (tmp_path / "metrics.csv").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, hard))
    try:
        with pytest.raises(OSError, match="large"):
            log(tmp_path, a=2, b=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "content", [b"", b"step,a", b"step,a\n1,2,3,4\n", b"step,step\n1,2\n", b"\xff\0\n", b"a,b\n1,2\n"]
)
def test_what_is_no_table_is_kept_aside(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.warns(UserWarning, match="renamed to metrics_damaged.csv"):
        log(tmp_path, a=1)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["a,step", "1,1"]
    assert (tmp_path / "metrics_damaged.csv").read_bytes() == content


@pytest.mark.parametrize("content", ["../../elsewhere", "", "x" * 100, "a b"])
def test_an_id_that_is_none_is_not_used(tmp_path, content):
    (tmp_path / "wandb_run_id.txt").write_text(content)
    name = _run_id(tmp_path)
    assert name.isalnum()
    assert _run_id(tmp_path) == name
