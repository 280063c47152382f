"""What a run says when a GPU runs out of memory."""

from types import SimpleNamespace

import pytest
import torch

from modules.errors import UserError
from pipelines.callbacks.housekeeping.guard import Guard, out_of_memory
from tests.modules.test_agent import agent, batches, real, train

GIB = 2**30


@pytest.mark.parametrize(
    ("sizes", "held", "words"),
    [
        ({"real": 256}, 2, ["2.0 of 80.0 GiB", "256 real windows", "try 128 windows (data.sampling.batch_size)"]),
        ({"real": 32, "model": 200}, 2, ["32 real windows and 200 model windows", "try 128 windows"]),
        ({"real": 256}, 60, ["60.0 of 80.0 GiB", "data.storage.frames_on_device to false"]),
        ({"real": 1}, 2, ["1 real windows", "smaller model"]),
    ],
    ids=str,
)
def test_what_would_fit_is_said_in_one_line(sizes, held, words):
    said = out_of_memory(sizes, held * GIB, 80 * GIB)
    assert all(word in said for word in words), said
    assert "\n" not in said


@pytest.mark.parametrize("saved", [False, True])
def test_a_gpu_that_is_full_ends_the_run_with_one_line_and_keeps_its_checkpoint(tmp_path, monkeypatch, saved):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * GIB))
    last = tmp_path / "checkpoints" / "last.ckpt"
    if saved:
        last.parent.mkdir()
        last.write_bytes(b"weights")
    module = agent(policy_learns_from="real")

    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(module.world_model, "loss", full)
    with pytest.raises(UserError, match=r"^out of GPU memory: .* 6 real windows .*: try 4 windows") as raised:
        train(module, batches(2, real=real), default_root_dir=tmp_path, callbacks=Guard())
    assert str(raised.value).endswith(f"checkpoint is {last}" if saved else "no checkpoint was written yet")
    assert "\n" not in str(raised.value)
    assert not saved or last.read_bytes() == b"weights"
