"""Folders of pictures: every mode, pages, sizes, names, and files that are refused."""

import builtins
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from skanomaly.datasets import load_images, read_frames

Image = pytest.importorskip("PIL.Image")
TiffImagePlugin = pytest.importorskip("PIL.TiffImagePlugin")

GREY = np.uint8([[0, 50, 100], [150, 200, 255]])
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
ALPHA = np.uint8([[255, 128, 0], [1, 254, 77]])
UPRIGHT, TURNED = 1, 6  # EXIF orientations
DEEP = np.uint16([[1000, 3000, 5000], [2000, 4000, 6000]])
DEEP_SCALED = [[0, 102, 204], [51, 153, 255]]


def write_deep_png(path, values, transparent=None):
    """Write a PNG of 16 bits per channel; Pillow writes grey ones alone."""

    def chunk(kind, data):
        checked = kind + data
        length, crc = len(data), zlib.crc32(checked)
        return struct.pack(">I", length) + checked + struct.pack(">I", crc)

    height, width = values.shape[:2]
    kind = {1: 0, 2: 4, 3: 2}[values.size // (height * width)]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0),
        b"tRNS": struct.pack(">H", transparent or 0),
        b"IDAT": zlib.compress(lines),
        b"IEND": b"",
    }
    if transparent is None:
        del chunks[b"tRNS"]
    content = b"".join(chunk(*each) for each in chunks.items())
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def write_double_tiff(path):
    """Write a TIFF of float64 numbers, which Pillow neither reads nor writes."""
    # Width, height, bits, compression, photometry, offset, rows, bytes, float.
    tags = {256: 3, 257: 2, 258: 64, 259: 1, 262: 1, 273: 8, 278: 2, 279: 48, 339: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + 48) + bytes(48) + directory)


def on_white(values, alpha):
    """Compose values of 8 bits, with an axis of channels or without, on white."""
    alpha = np.reshape(alpha, alpha.shape + (1,) * (values.ndim - 2)) / 255
    return np.rint(values * alpha + 255 * (1 - alpha))


def with_alpha(values):
    return np.concatenate([np.atleast_3d(values), ALPHA[..., None]], axis=-1)


def palette(colours, mode="P"):
    """Return a picture of six colours, one per pixel."""
    picture = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3), "P")
    picture.putpalette(np.uint8(colours).ravel().tolist())
    return picture.convert(mode)


def channels_first(values):
    return np.moveaxis(np.atleast_3d(values), -1, 0)


# ---------------------------------------------------------------------------- modes

# Name: a picture, the options to save it, the expected values.
MODES = {
    "1.png": (Image.fromarray(GREY > 120), {}, np.where(GREY > 120, 255, 0)),
    "1.tif": (Image.fromarray(GREY > 120), {}, np.where(GREY > 120, 255, 0)),
    "1-clear.png": (
        Image.fromarray(GREY > 120),
        {"transparency": 0},
        np.full((2, 3), 255),
    ),
    "L.png": (Image.fromarray(GREY), {}, GREY),
    "L.bmp": (Image.fromarray(GREY), {}, GREY),
    "L.gif": (Image.fromarray(GREY), {}, GREY),
    "L-clear.png": (
        Image.fromarray(GREY),
        {"transparency": 50},
        np.where(GREY == 50, 255, GREY),
    ),
    "LA.png": (Image.fromarray(with_alpha(GREY)), {}, on_white(GREY, ALPHA)),
    "LA.tif": (Image.fromarray(with_alpha(GREY)), {}, on_white(GREY, ALPHA)),
    "P-grey.png": (palette(np.repeat(GREY, 3)), {}, GREY),
    "P-grey.tif": (palette(np.repeat(GREY, 3)), {}, GREY),
    "P.png": (palette(COLOUR), {}, COLOUR),
    "P.gif": (palette(COLOUR), {}, COLOUR),
    "P.tif": (palette(COLOUR), {}, COLOUR),
    "P-clear.png": (
        palette(COLOUR),
        {"transparency": ALPHA.tobytes()},
        on_white(COLOUR, ALPHA),
    ),
    "P-clear.gif": (
        palette(COLOUR),
        {"transparency": 4},
        np.where((np.arange(6) == 4).reshape(2, 3, 1), 255, COLOUR),
    ),
    "PA.tif": (palette(COLOUR, "PA"), {}, COLOUR),
    "RGB.png": (Image.fromarray(COLOUR), {}, COLOUR),
    "RGB.ppm": (Image.fromarray(COLOUR), {}, COLOUR),
    "RGB-equal.png": (
        Image.fromarray(GREY).convert("RGB"),
        {},
        np.repeat(GREY[..., None], 3, axis=-1),
    ),
    "RGB-clear.png": (
        Image.fromarray(COLOUR),
        {"transparency": tuple(COLOUR[0, 1].tolist())},
        np.where((COLOUR[0, 1] == COLOUR).all(-1, keepdims=True), 255, COLOUR),
    ),
    "RGBA.png": (Image.fromarray(with_alpha(COLOUR)), {}, on_white(COLOUR, ALPHA)),
    "RGBA.tif": (Image.fromarray(with_alpha(COLOUR)), {}, on_white(COLOUR, ALPHA)),
    "RGBA.tga": (Image.fromarray(with_alpha(COLOUR)), {}, on_white(COLOUR, ALPHA)),
    "CMYK.tif": (
        Image.fromarray(with_alpha(COLOUR), "CMYK"),
        {},
        (255 - COLOUR.astype(float)) * (255 - ALPHA[..., None].astype(float)) / 255,
    ),
    "LAB.tif": (Image.new("LAB", (3, 2), (255, 128, 128)), {}, np.full((2, 3, 3), 255)),
    "I16.png": (Image.fromarray(DEEP), {}, DEEP_SCALED),
    "I16.tif": (Image.fromarray(DEEP), {}, DEEP_SCALED),
    "I16.pgm": (Image.fromarray(DEEP.astype(np.int32)), {}, DEEP_SCALED),
    "I16-big.tif": (Image.fromarray(DEEP.astype(">u2")), {}, DEEP_SCALED),
    "I32.tif": (Image.fromarray(DEEP.astype(np.int32) * 99), {}, DEEP_SCALED),
    "I32-negative.tif": (
        Image.fromarray(DEEP.astype(np.int32) - 99999),
        {},
        DEEP_SCALED,
    ),
    "F.tif": (Image.fromarray(DEEP / np.float32(1e4) - 3), {}, DEEP_SCALED),
}
EXACT = {name for name in MODES if not name.startswith(("CMYK", "LAB"))}


@pytest.mark.parametrize("name", MODES)
def test_modes(name, tmp_path):
    picture, options, expected = MODES[name]
    picture.save(tmp_path / name, **options)
    images, names = load_images(tmp_path, pattern="*")
    assert names == [name]
    assert images.dtype == np.uint8
    assert images.shape[0] == 1
    expected = channels_first(expected)
    np.testing.assert_allclose(images[0], expected, atol=0 if name in EXACT else 1)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(mode, tmp_path):
    colours = {"L": 100, "RGB": (250, 100, 30), "CMYK": (5, 155, 225, 0)}
    Image.new(mode, (16, 8), colours[mode]).save(tmp_path / "a.jpg", quality=95)
    images, _ = load_images(tmp_path, pattern="*.jpg")
    expected = [100] if mode == "L" else [250, 100, 30]
    expected = np.broadcast_to(np.reshape(expected, (-1, 1, 1)), images.shape[1:])
    np.testing.assert_allclose(images[0], expected, atol=2)


def test_grey_is_repeated_beside_colours(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "b.png")
    Image.fromarray(GREY).save(tmp_path / "a.png")
    Image.fromarray(DEEP).save(tmp_path / "c.png")
    images, names = load_images(tmp_path)
    assert names == ["a.png", "b.png", "c.png"]
    np.testing.assert_array_equal(images[0], [GREY] * 3)
    np.testing.assert_array_equal(images[1], channels_first(COLOUR))
    np.testing.assert_array_equal(images[2], [DEEP_SCALED] * 3)


# ------------------------------------------------------------- more than eight bits


def test_a_deep_ramp_is_a_ramp(tmp_path):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    images, _ = load_images(tmp_path)
    np.testing.assert_array_equal(images[0, 0], np.rint(ramp / 257))


def test_the_range_is_that_of_the_folder(tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "a.tif")
    Image.fromarray(DEEP // 2).save(tmp_path / "b.tif")
    Image.fromarray(GREY).save(tmp_path / "c.tif")
    images, _ = load_images(tmp_path, pattern="*.tif")
    for image, values in zip(images, (DEEP, DEEP // 2), strict=False):
        np.testing.assert_array_equal(image[0], np.rint((values - 500.0) / 5500 * 255))
    np.testing.assert_array_equal(images[2, 0], GREY)


def test_a_given_range(tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "a.png")
    images, _ = load_images(tmp_path, value_range=(2000, 4550))
    np.testing.assert_array_equal(images[0, 0], [[0, 100, 255], [0, 200, 255]])
    images, _ = load_images(tmp_path, value_range=(np.float32(0), 65535))
    np.testing.assert_array_equal(images[0, 0], np.rint(DEEP / 257))


def test_deep_pictures_of_one_value_are_black(tmp_path):
    Image.fromarray(np.full_like(DEEP, 700)).save(tmp_path / "a.png")
    assert (load_images(tmp_path)[0] == 0).all()


def test_transparent_deep_values_are_white_and_out_of_the_range(tmp_path):
    write_deep_png(tmp_path / "a.png", DEEP, transparent=6000)
    images, _ = load_images(tmp_path)
    expected = np.rint((DEEP - 1000.0) / 4000 * 255)
    expected[1, 2] = 255
    np.testing.assert_array_equal(images[0, 0], expected)
    write_deep_png(tmp_path / "a.png", np.full_like(DEEP, 9), transparent=9)
    assert (load_images(tmp_path)[0] == 255).all()


def test_deep_colours_keep_their_upper_bits(tmp_path):
    values = (COLOUR.astype(np.uint16) << 8) + 77
    write_deep_png(tmp_path / "a.png", values)
    images, _ = load_images(tmp_path)
    np.testing.assert_array_equal(images[0], channels_first(COLOUR))


def test_deep_grey_with_transparency_is_grey(tmp_path):
    write_deep_png(tmp_path / "a.png", with_alpha(GREY).astype(np.uint16) << 8)
    images, _ = load_images(tmp_path)
    np.testing.assert_array_equal(images[0, 0], on_white(GREY, ALPHA))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_floats_that_are_not_finite_are_refused(value, tmp_path):
    Image.fromarray(np.float32([[0, value]])).save(tmp_path / "a.tif")
    for value_range in (None, (0, 1)):
        with pytest.raises(ValueError, match=r"a\.tif has values that are not finite"):
            load_images(tmp_path, pattern="*.tif", value_range=value_range)


# ---------------------------------------------------------------------------- pages


@pytest.mark.parametrize("kind", ["tif", "png", "gif"])
def test_every_page_is_an_image(kind, tmp_path):
    pages = [Image.fromarray(GREY // k) for k in (1, 2, 3)]
    pages[0].save(tmp_path / f"b.{kind}", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / f"a.{kind}")
    images, names = load_images(tmp_path, pattern="*")
    assert names == [f"a.{kind}", *[f"b.{kind}"] * 3]
    for image, k in zip(images, (1, 1, 2, 3), strict=True):
        for channel in image:
            np.testing.assert_array_equal(channel, GREY // k)


def test_pages_of_several_modes(tmp_path):
    pages = [Image.fromarray(DEEP), Image.fromarray(COLOUR), Image.fromarray(GREY)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    images, _ = load_images(tmp_path, pattern="*.tif")
    np.testing.assert_array_equal(images[0], [DEEP_SCALED] * 3)
    np.testing.assert_array_equal(images[1], channels_first(COLOUR))
    np.testing.assert_array_equal(images[2], [GREY] * 3)


def test_previews_are_left_out(tmp_path):
    def picture(k, side=8):
        return Image.fromarray(np.full((side, side), k, np.uint8))

    previews = {"append_images": [picture(200, 4)]}
    picture(100).save(tmp_path / "a.jpg", "MPO", save_all=True, **previews)
    with TiffImagePlugin.AppendingTiffWriter(tmp_path / "b.tif", True) as file:
        for page, is_reduced in (
            (picture(100), 0),
            (picture(0, 4), 1),
            (picture(200), 0),
        ):
            page.save(file, "TIFF", tiffinfo={254: is_reduced})
            file.newFrame()
    images, names = load_images(tmp_path, pattern="*")
    assert names == ["a.jpg", "b.tif", "b.tif"]
    assert images[:, 0, 0, 0].tolist() == [100, 100, 200]


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("values", [GREY, DEEP])
def test_pictures_stand_upright(kind, values, tmp_path):
    for orientation in (UPRIGHT, TURNED):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(values).save(tmp_path / f"{orientation}.{kind}", exif=exif)
    found = [load_images(tmp_path, pattern=f"{k}.*")[0][0, 0] for k in (1, 6)]
    assert found[0].shape == (2, 3)
    np.testing.assert_array_equal(found[1], np.rot90(found[0], -1))


# ---------------------------------------------------------------------------- sizes


def test_a_size_takes_means(tmp_path):
    values = np.kron([[0, 100, 200], [50, 150, 250]], [[0, 2], [4, 6]]) // 8
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(COLOUR).save(tmp_path / "b.png")
    images, _ = load_images(tmp_path, size=(2, 3))
    assert images.shape == (2, 3, 2, 3)
    expected = values.reshape(2, 2, 3, 2).mean((1, 3))
    np.testing.assert_allclose(images[0], [expected] * 3, atol=1)
    np.testing.assert_array_equal(images[1], channels_first(COLOUR))
    assert load_images(tmp_path, (np.int64(7), 5))[0].shape == (2, 3, 7, 5)


@pytest.mark.parametrize("pages", [False, True])
def test_sizes_that_differ_need_one(pages, tmp_path):
    first, second = Image.fromarray(GREY), Image.fromarray(GREY[:1])
    if pages:
        first.save(tmp_path / "b.tif", save_all=True, append_images=[second])
    else:
        first.save(tmp_path / "a.tif")
        second.save(tmp_path / "b.tif")
    message = r"b\.tif has the size \(1, 3\), the first picture \(2, 3\): give a `size`"
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path, pattern="*.tif")
    assert load_images(tmp_path, (4, 4), "*.tif")[0].shape == (2, 1, 4, 4)


# ---------------------------------------------------------------------------- names


@pytest.fixture
def tree(tmp_path):
    """Write a tree of pictures, with hidden ones and other files among them."""
    pictures = "b.png", "a10.png", "a9.png", "below/c.png", "below/deep/a.png", "d.jpg"
    for name in pictures:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), ord(name[0]), np.uint8)).save(tmp_path / name)
    for name in ("._b.png", ".hidden/a.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no picture")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a10.png", "a9.png", "b.png"]),
        ("a*", ["a10.png", "a9.png"]),
        ("below/*", ["below/c.png"]),
        ("*/*.png", ["below/c.png"]),
        ("*.jpg", ["d.jpg"]),
        (
            "**/*.png",
            ["a10.png", "a9.png", "b.png", "below/c.png", "below/deep/a.png"],
        ),
    ],
)
def test_patterns(pattern, expected, tree):
    for folder in (tree, str(tree)):
        images, names = load_images(folder, pattern=pattern)
        assert names == expected
        found = images[:, 0, 0, 0]
        np.testing.assert_allclose(found, [ord(name[0]) for name in names], atol=1)


def test_a_folder_of_the_home(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree))
    assert load_images("~/below")[1] == ["c.png"]


# ------------------------------------------------------------------------- bad input


def test_missing_folders_and_files(tree):
    for nothing in ("nowhere", "b.png"):
        with pytest.raises(FileNotFoundError, match=f"no folder .*{nothing}"):
            load_images(tree / nothing)
    for pattern in ("*.tif", "folder.*", ".hidden/*.png", "../*"):
        with pytest.raises(FileNotFoundError, match=r"No file in .* matches"):
            load_images(tree, pattern=pattern)


@pytest.mark.parametrize("size", [64, (64,), (0, 4), (4.0, 4), "ab", (4, -1)])
def test_sizes_that_are_none(size, tree):
    with pytest.raises(ValueError, match="size must be two positive integers"):
        load_images(tree, size)


@pytest.mark.parametrize("pattern", ["", None, 5, "/tmp/*.png"])
def test_patterns_that_are_none(pattern, tree):
    with pytest.raises(ValueError, match="pattern must be one of files in the folder"):
        load_images(tree, pattern=pattern)


@pytest.mark.parametrize(
    "value_range", [1, (0,), (1, 0), (1, 1), (0, np.inf), (np.nan, 1), "ab"]
)
def test_ranges_that_are_none(value_range, tree):
    with pytest.raises(ValueError, match="value_range must be two ascending numbers"):
        load_images(tree, value_range=value_range)


def write_broken(kind, path):
    """Write a file that is no picture, or only the beginning of one."""
    if kind == "float64":
        return write_double_tiff(path)
    if kind in ("empty", "text"):
        return path.write_bytes(b"no picture" if kind == "text" else b"")
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, kind)
    content = path.read_bytes()
    return path.write_bytes(content[: len(content) // 2])


BROKEN = ["empty", "text", "float64", "PNG", "JPEG", "TIFF", "BMP", "GIF"]


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("reader", [load_images, read_frames])
def test_broken_files_are_named(kind, reader, tmp_path):
    Image.fromarray(GREY).resize((64, 64)).save(tmp_path / "a.png")
    write_broken(kind, tmp_path / "b.png")
    with pytest.raises(OSError, match=r"b\.png is damaged, or no picture that Pillow"):
        reader(tmp_path)


def test_a_chunk_that_is_changed_is_named(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[20] ^= 1  # of the header, whose checksum differs
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(OSError, match=r"a\.png is damaged"):
        load_images(tmp_path)


def test_files_that_cannot_be_opened_keep_their_error(tmp_path, monkeypatch):
    Image.fromarray(GREY).save(tmp_path / "a.png")

    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"a\.png"):
        load_images(tmp_path)


def test_large_pictures_have_the_guards_of_pillow(tmp_path, monkeypatch):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.warns(Image.DecompressionBombWarning, match=r"\(6 pixels\)"):
        load_images(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    message = r"a\.png is too large: .*\(6 pixels\).* raise PIL\.Image\.MAX_IMAGE_PIX"
    with pytest.raises(OSError, match=message):
        load_images(tmp_path)


@pytest.mark.parametrize("reader", [load_images, read_frames])
def test_without_pillow(reader, monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("PIL"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    message = rf"{reader.__name__} needs Pillow: `pip install skanomaly\[images\]`"
    with pytest.raises(ImportError, match=message):
        reader(tmp_path)
