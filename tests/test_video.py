"""Frames of Ped2 and of folders, the clips they make, the scores they get."""

import inspect
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
from test_pictures import write_deep_png

from skanomaly.datasets import (
    fetch_ucsd_ped2,
    frame_scores,
    make_clips,
    read_frames,
)

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def ped2(tmp_path):
    """Write a small file in the form of Ped2 and return its folder and arrays."""
    rng = np.random.default_rng(0)
    arrays = {
        "X_train": rng.integers(256, size=(7, 4, 6), dtype=np.uint8),
        "clip_train": np.int16([1, 1, 1, 2, 2, 2, 2]),
        "X_test": rng.integers(256, size=(5, 4, 6), dtype=np.uint8),
        "clip_test": np.int16([1, 1, 2, 2, 2]),
        "y_test": np.uint8([0, 1, 0, 1, 1]),
    }
    np.savez(tmp_path / "ucsd_ped2.npz", **arrays)
    return tmp_path, arrays


@pytest.fixture(params=["noise", "ped2"])
def videos(request):
    """Return the frames of two videos: of real ones too, where they are at hand."""
    if request.param == "noise":
        rng = np.random.default_rng(0)
        return [rng.integers(256, size=(n, 8, 12), dtype=np.uint8) for n in (21, 18)]
    folder = request.getfixturevalue("shared_data")
    bunch = fetch_ucsd_ped2(data_home=folder)
    return [bunch.data[bunch.videos == k, 0][:n] for k, n in ((1, 21), (2, 18))]


def write(folder, frames, name="frame{}.png"):
    """Write frames as pictures, numbered from 1 without leading zeros."""
    folder.mkdir(parents=True)
    for k, frame in enumerate(frames, start=1):
        Image.fromarray(frame).save(folder / name.format(k))


# ---------------------------------------------------------------------------- Ped2


def test_ped2_marks_abnormal_frames_by_minus_one(ped2):
    folder, arrays = ped2
    bunch = fetch_ucsd_ped2(subset="test", data_home=folder)
    np.testing.assert_array_equal(bunch.data[:, 0], arrays["X_test"])
    assert bunch.data.shape == (5, 1, 4, 6)
    assert bunch.target.tolist() == [1, -1, 1, -1, -1]
    assert bunch.videos.tolist() == [1, 1, 2, 2, 2]
    assert bunch.target.dtype == bunch.videos.dtype == np.int64
    assert bunch.filename == str(folder / "ucsd_ped2.npz")
    assert bunch.DESCR.startswith("Load UCSD Ped2")
    assert "Rights: " in bunch.DESCR
    assert "Parameters" not in bunch.DESCR


def test_ped2_subsets(ped2):
    folder, _ = ped2
    train, test, whole = (
        fetch_ucsd_ped2(subset=subset, data_home=folder)
        for subset in ("train", "test", "all")
    )
    assert train.target.tolist() == [1] * 7
    for name in ("data", "target"):
        both = np.concatenate([train[name], test[name]])
        np.testing.assert_array_equal(whole[name], both)
    # Numbers that no two videos share.
    assert whole.videos.tolist() == [1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 4]
    X, y = fetch_ucsd_ped2(data_home=folder, return_X_y=True)
    np.testing.assert_array_equal(X, train.data)
    np.testing.assert_array_equal(y, train.target)


def test_the_error_of_a_missing_ped2_gives_instructions(tmp_path, monkeypatch):
    monkeypatch.delenv("SKANOMALY_DATA", raising=False)
    with pytest.raises(FileNotFoundError) as caught:
        fetch_ucsd_ped2(subset="test", data_home=tmp_path)
    expected = ["X_test, clip_test, y_test", "svcl.ucsd.edu", "read_frames"]
    for part in ["ucsd_ped2.npz", str(tmp_path), "SKANOMALY_DATA", *expected]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X_test": np.zeros((5, 4, 6))}, "must hold uint8 frames .* got float64"),
        ({"X_test": np.zeros((4, 4, 6), np.uint8)}, "with 5 labels"),
        ({"X_test": np.zeros((5, 4, 6, 3), np.uint8)}, "must hold uint8 frames"),
        ({"y_test": np.int8([1, 1, -1, 1, 1])}, "must be 1 for an abnormal frame"),
        ({"y_test": np.zeros(4)}, "one label for each of 5 frames"),
    ],
)
def test_a_ped2_of_another_kind_is_refused(changes, message, ped2):
    folder, arrays = ped2
    np.savez(folder / "ucsd_ped2.npz", **arrays | changes)
    with pytest.raises(ValueError, match=message):
        fetch_ucsd_ped2(subset="test", data_home=folder)


def test_unknown_subset():
    with pytest.raises(ValueError, match='"train", "test" or "all"'):
        fetch_ucsd_ped2(subset="validation")


def test_real_ped2(shared_data):
    train = fetch_ucsd_ped2(data_home=shared_data)
    test = fetch_ucsd_ped2(subset="test", data_home=shared_data)
    assert train.data.shape == (2550, 1, 64, 64)
    assert train.videos.max() == 16
    assert test.data.shape == (2010, 1, 64, 64)
    assert test.videos.max() == 12
    assert (test.target == -1).sum() == 1648
    clips, starts = make_clips(test.data, test.videos)
    assert clips.shape == (2010 - 12 * 15, 1, 16, 64, 64)
    scores = frame_scores(np.zeros(len(clips)), starts, len(test.data))
    assert (scores == 0).all()


# -------------------------------------------------------------------------- folders


def test_a_folder_of_folders(videos, tmp_path):
    # As UCSD has them, with Train010 after Train009 and Train10 after Train9 as well.
    write(tmp_path / "Train" / "Train9", videos[0], "{}.tif")
    write(tmp_path / "Train" / "Train10", videos[1], "{}.tif")
    (tmp_path / "Train" / "notes").mkdir()
    (tmp_path / "Train" / "readme.txt").write_text("no picture")
    frames, numbers = read_frames(tmp_path / "Train")
    assert frames.dtype == np.uint8
    assert numbers.dtype == np.int64
    assert frames.shape == (39, 1, *videos[0].shape[1:])
    np.testing.assert_array_equal(frames[:, 0], np.concatenate(videos))
    np.testing.assert_array_equal(numbers, np.repeat([1, 2], [21, 18]))


@pytest.mark.parametrize("kind", ["frame{}.png", "{}.BMP", "f-{}.TIFF", "a{}b.png"])
def test_one_folder_is_one_video(kind, videos, tmp_path):
    write(tmp_path / "video", videos[0], kind)
    (tmp_path / "video" / "._frame1.png").write_bytes(b"not a picture")
    frames, numbers = read_frames(str(tmp_path / "video"))
    np.testing.assert_array_equal(frames[:, 0], videos[0])
    assert numbers.tolist() == [1] * 21


def test_folders_in_the_order_given(videos, tmp_path):
    for k, frames in enumerate(videos):
        write(tmp_path / f"Test{k}", frames)
        write(tmp_path / f"Test{k}_gt", frames // 255, "{}.bmp")
    folders = [tmp_path / "Test1", str(tmp_path / "Test0")]
    for given in (folders, iter(folders)):
        frames, numbers = read_frames(given)
        np.testing.assert_array_equal(frames[:, 0], np.concatenate(videos[::-1]))
        np.testing.assert_array_equal(numbers, np.repeat([1, 2], [18, 21]))


def test_jpeg_is_near(tmp_path):
    smooth = np.linspace(0, 255, 8 * 12).reshape(1, 8, 12).astype(np.uint8)
    write(tmp_path / "video", smooth, "{}.jpg")
    frames, _ = read_frames(tmp_path / "video")
    assert np.abs(frames[:, 0].astype(int) - smooth).max() < 12


def test_colours_become_grey(tmp_path):
    colour = np.zeros((1, 4, 4, 3), np.uint8) + np.uint8([10, 20, 30])
    write(tmp_path / "video", colour)
    frames, _ = read_frames(tmp_path / "video")
    assert frames.shape == (1, 1, 4, 4)
    # The weights of ITU-R 601, as Pillow has them.
    assert (frames == round(0.299 * 10 + 0.587 * 20 + 0.114 * 30)).all()


def test_a_size_takes_means(tmp_path):
    frame = np.kron([[0, 100, 200], [50, 150, 250]], [[0, 2], [4, 6]]) // 8
    write(tmp_path / "video", frame[None].astype(np.uint8))
    frames, _ = read_frames(tmp_path / "video", size=(2, 3))
    assert frames.shape == (1, 1, 2, 3)
    expected = frame.reshape(2, 2, 3, 2).mean((1, 3))
    np.testing.assert_allclose(frames[0, 0], expected, atol=1)


def test_frames_of_several_sizes_need_one(tmp_path):
    write(tmp_path / "0" / "a", np.zeros((2, 8, 6), np.uint8))
    write(tmp_path / "0" / "b", np.zeros((2, 4, 6), np.uint8))
    with pytest.raises(ValueError, match=r"b/frame1.png has the size \(4, 6\)"):
        read_frames(tmp_path / "0")
    assert read_frames(tmp_path / "0", size=(4, 4))[0].shape == (4, 1, 4, 4)


@pytest.mark.parametrize("size", [64, (64,), (0, 4), (4.0, 4), "ab"])
def test_sizes_that_are_none(size, tmp_path):
    with pytest.raises(ValueError, match="size must be two positive integers"):
        read_frames(tmp_path, size=size)


def test_folders_without_pictures(tmp_path):
    for nothing in (tmp_path, [tmp_path]):
        with pytest.raises(FileNotFoundError, match=f"no picture .* in {tmp_path}"):
            read_frames(nothing)
    with pytest.raises(FileNotFoundError, match="empty list of folders"):
        read_frames([])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_frames(tmp_path / "nowhere")


def test_pictures_beside_folders_are_refused(videos, tmp_path):
    write(tmp_path / "top", videos[0][:2])
    write(tmp_path / "top" / "below", videos[0][:2])
    with pytest.raises(ValueError, match="both pictures and folders"):
        read_frames(tmp_path / "top")


def test_deep_pictures_are_refused(tmp_path):
    write(tmp_path / "video", np.zeros((1, 4, 4), np.uint16))
    with pytest.raises(ValueError, match="more than 8 bits"):
        read_frames(tmp_path / "video")


def test_deep_colours_are_refused(tmp_path):
    write_deep_png(tmp_path / "1.png", np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match=r"1\.png has more than 8 bits"):
        read_frames(tmp_path)


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_several_pictures_in_a_file_are_refused(kind, tmp_path):
    pages = [Image.fromarray(np.full((4, 4), k, np.uint8)) for k in (1, 2, 3)]
    path = tmp_path / f"1.{kind.lower()}"
    pages[0].save(path, kind, save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="holds 3 pictures"):
        read_frames(tmp_path)


def test_previews_are_passed_over(tmp_path):
    pages = [Image.fromarray(np.full((8, 8), k, np.uint8)) for k in (100, 200)]
    pages[0].save(tmp_path / "1.jpg", "MPO", save_all=True, append_images=pages[1:])
    assert (read_frames(tmp_path)[0] == 100).all()


def test_broken_pictures_raise_an_error(tmp_path):
    (tmp_path / "1.png").write_bytes(b"not a picture")
    with pytest.raises(OSError, match=r"1\.png"):
        read_frames(tmp_path)


# ---------------------------------------------------------------------------- clips


@pytest.fixture
def frames():
    """Return 30 frames of two channels; a frame's value is its own number."""
    return np.zeros((30, 2, 3, 4), np.uint8) + np.arange(30, dtype="u1")[:, *[None] * 3]


@pytest.mark.parametrize(("length", "stride"), [(16, 1), (4, 3), (5, 7), (30, 1)])
def test_clips_of_one_video_are_a_view(frames, length, stride):
    clips, starts = make_clips(frames, length=length, stride=stride)
    assert clips.shape == (len(starts), 2, length, 3, 4)
    np.testing.assert_array_equal(starts, np.arange(0, 30 - length + 1, stride))
    expected = starts[:, None] + np.arange(length)
    np.testing.assert_array_equal(clips[:, 1, :, 2, 3], expected)
    assert np.shares_memory(clips, frames)
    assert clips.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        clips[0] = 0


def test_clips_stay_in_their_videos(frames):
    videos = np.repeat([5, 0, 9], [12, 3, 15])
    clips, starts = make_clips(frames, videos, length=8, stride=2)
    assert starts.tolist() == [0, 2, 4, 15, 17, 19, 21]
    np.testing.assert_array_equal(clips[:, 0, 0, 0, 0], starts)
    np.testing.assert_array_equal(clips[:, 0, -1, 0, 0], starts + 7)
    for one in (videos.tolist(), videos.astype(str)):
        np.testing.assert_array_equal(
            make_clips(frames, one, length=8, stride=2)[0], clips
        )


def test_clips_at_equal_distances_are_a_view(frames):
    clips, starts = make_clips(frames, np.arange(30) // 10, length=4, stride=5)
    assert starts.tolist() == [0, 5, 10, 15, 20, 25]
    assert np.shares_memory(clips, frames)
    np.testing.assert_array_equal(clips[:, 0, 0, 0, 0], starts)


def test_one_clip(frames):
    clips, starts = make_clips(frames, np.repeat([1, 2], [10, 20]), length=20)
    assert starts.tolist() == [10]
    np.testing.assert_array_equal(clips[0, 0, :, 0, 0], np.arange(10, 30))


def test_a_memory_map_stays_in_its_file(frames, tmp_path):
    np.save(tmp_path / "frames.npy", frames)
    mapped = np.load(tmp_path / "frames.npy", mmap_mode="r")
    assert np.shares_memory(make_clips(mapped)[0], mapped)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length must be a positive integer, got 0"),
        ({"length": 2.0}, "length must be a positive integer"),
        ({"stride": -1}, "stride must be a positive integer"),
        ({"length": 31}, "No video has the 31 frames"),
        ({"videos": np.arange(30)}, "No video has the 16 frames"),
        ({"videos": np.arange(30) % 2}, "must stand together"),
        ({"videos": np.zeros(29)}, "inconsistent numbers of samples"),
    ],
)
def test_clips_refuse(options, message, frames):
    with pytest.raises(ValueError, match=message):
        make_clips(frames, **options)


def test_clips_need_channels(frames):
    with pytest.raises(ValueError, match=r"frames\[:, None\]"):
        make_clips(frames[:, 0])
    with pytest.raises(ValueError, match=r"np\.moveaxis"):
        make_clips(np.zeros((30, 8, 8, 3)))


# --------------------------------------------------------------------- frame scores


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_a_frame_has_the_mean_of_its_clips(stride):
    starts = np.r_[np.arange(0, 7, stride), np.arange(10, 17, stride)]
    scores = np.random.default_rng(0).normal(size=len(starts))
    found = frame_scores(scores, starts, 20, length=4)
    for frame, value in enumerate(found):
        of_it = scores[(starts <= frame) & (frame < starts + 4)]
        if len(of_it):
            assert value == pytest.approx(of_it.mean())
        else:
            assert np.isnan(value)
    assert found.dtype == np.float64


def test_scores_of_each_frame_of_each_clip():
    scores = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    found = frame_scores(scores, [0, 1], 5)
    np.testing.assert_array_equal(found, [1, 6, 11.5, 30, np.nan])


def test_scores_that_belong_to_the_frames_come_back(frames):
    videos = np.repeat([1, 2], [14, 16])
    clips, starts = make_clips(frames, videos, length=6)
    found = frame_scores(clips[:, 0, :, 0, 0], starts, len(frames))
    np.testing.assert_array_equal(found, np.arange(30))


def test_scores_by_video_are_those_of_all():
    # Names that do not ascend, and a video that is shorter than a clip.
    videos = np.repeat([7, 5, 9], [20, 10, 30])
    frames = np.random.default_rng(0).normal(size=(60, 1, 3, 4))
    detector = SimpleNamespace(score_samples=lambda clips: clips.mean((1, 2, 3, 4)))
    clips, starts = make_clips(frames, videos)
    whole = frame_scores(detector.score_samples(clips), starts, 60)

    recipe = inspect.getdoc(make_clips).split("go video by video::\n\n")[1]
    recipe = recipe.split("\nFrames that are read")[0]
    names = globals() | {"frames": frames, "videos": videos, "detector": detector}
    exec(textwrap.dedent(recipe), names)
    np.testing.assert_allclose(names["scores"], whole)
    assert np.isnan(whole).tolist() == (videos == 5).tolist()


@pytest.mark.parametrize(
    ("scores", "starts", "n_frames", "message"),
    [
        (np.zeros((2, 3, 1)), [0, 1], 9, r"\(n_clips, length\), got \(2, 3, 1\)"),
        ([0, 0], [0], 20, "inconsistent numbers of samples"),
        ([0, 0], [0, 5], 20, "Clips of 16 frames that begin at 0 to 5 .* 20 frames"),
        ([0, 0], [-1, 1], 20, "are not all among 20 frames"),
        (np.zeros((1, 3)), [0], 2, "Clips of 3 frames"),
    ],
)
def test_frame_scores_refuse(scores, starts, n_frames, message):
    with pytest.raises(ValueError, match=message):
        frame_scores(scores, starts, n_frames)
