import av
import numpy as np
import pytest
from PIL import Image

from pipelines.display.films import enlarge, write_gif, write_mp4, write_png


def film(num_frames, height, width) -> np.ndarray:
    """A bright square that moves one pixel per frame over blocks of grey."""
    frames = np.full((num_frames, height, width, 3), 60, np.uint8)
    frames[:, : height // 2] = 120
    for t in range(num_frames):
        frames[t, 4:12, t : t + 8] = (240, 200, 40)
    return frames


def close(read: np.ndarray, written: np.ndarray, tolerance: float) -> bool:
    return float(np.abs(read.astype(int) - written).mean()) < tolerance


def test_enlarging_repeats_every_pixel():
    frames = np.arange(2 * 3 * 4 * 3).reshape(2, 3, 4, 3)
    large = enlarge(frames, 3)
    assert large.shape == (2, 9, 12, 3)
    for y in range(9):
        for x in range(12):
            assert np.array_equal(large[:, y, x], frames[:, y // 3, x // 3])


def test_a_png_reads_back_as_it_was(tmp_path):
    picture = film(1, 20, 30)[0]
    write_png(tmp_path / "a.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)


@pytest.mark.parametrize("num_frames", [1, 3, 25])
def test_a_gif_reads_back_frame_by_frame(tmp_path, num_frames):
    frames = film(num_frames, 33, 48)
    write_gif(tmp_path / "a.gif", frames, fps=10)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == num_frames
        assert image.size == (48, 33)
        for t in range(num_frames):
            image.seek(t)
            assert close(np.asarray(image.convert("RGB")), frames[t], 4)
            if num_frames > 1:
                assert image.info["duration"] == 100
                assert image.info["loop"] == 0


def test_a_still_scene_keeps_its_length_as_a_gif(tmp_path):
    frames = np.concatenate([film(1, 32, 48).repeat(10, axis=0), film(10, 32, 48)])
    write_gif(tmp_path / "a.gif", frames, fps=20)
    with Image.open(tmp_path / "a.gif") as image:
        total = 0
        for t in range(image.n_frames):
            image.seek(t)
            total += image.info["duration"]
    assert total == 20 * 50


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 49)])
def test_an_mp4_reads_back_frame_by_frame(tmp_path, height, width):
    frames = film(25, height, width)
    write_mp4(tmp_path / "a.mp4", frames, fps=10)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == 10
        read = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(read) == 25
    for t, picture in enumerate(read):
        assert picture.shape == (32, 48, 3)
        assert close(picture, frames[t, :32, :48], 12)
