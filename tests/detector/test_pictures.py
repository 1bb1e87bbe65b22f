"""Every form in which an image may be handed over, and what is said of one that is none."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from detector.errors import InputError
from detector.pictures import LARGE, MOST, read_picture

CORNERS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 255], [0, 0, 0], [128, 64, 32]]], np.uint8)


def blocks(side=24):
    """Six blocks of colour, 72 wide and 48 high: which way is up can be told."""
    return CORNERS.repeat(side, 0).repeat(side, 1)


def centres(pixels, side=24):
    return pixels[side // 2 :: side, side // 2 :: side].astype(int)


@pytest.mark.parametrize("form", ["path", "str", "PIL", "lazy", "array", "view", "readonly", "tensor", "picture"])
def test_any_form_has_the_same_pixels(form, tmp_path):
    array = blocks()
    Image.fromarray(array).save(tmp_path / "a.png")
    readonly = array.copy()
    readonly.flags.writeable = False
    image = {
        "path": tmp_path / "a.png",
        "str": str(tmp_path / "a.png"),
        "PIL": Image.fromarray(array),
        "lazy": Image.open(tmp_path / "a.png"),
        "array": array,
        "view": array[:, ::-1][:, ::-1],
        "readonly": readonly,
        "tensor": torch.from_numpy(array).permute(2, 0, 1),
        "picture": read_picture(array),
    }[form]
    pixels, size = read_picture(image)
    assert np.array_equal(pixels, array)
    assert size == (48, 72)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_a_photograph_is_upright_however_the_camera_was_held(orientation, suffix, tmp_path):
    path = tmp_path / f"turned{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if suffix == ".jpg" else {}
    Image.fromarray(blocks()).save(path, exif=exif, **options)
    # What turns the stored pixels upright, by the definition of the tag: the 0th row and column are at these sides.
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }[orientation](CORNERS.astype(int))
    for image in (path, Image.open(path)):
        pixels, size = read_picture(image)
        assert size == pixels.shape[:2] == (24 * turned.shape[0], 24 * turned.shape[1])
        assert np.abs(centres(pixels) - turned).max() < 8


def test_each_mode_becomes_rgb(tmp_path):
    rgb = Image.fromarray(blocks())
    grey = np.array(rgb.convert("L")).astype(int)
    Image.fromarray((grey * 257).astype(np.uint16)).save(tmp_path / "16.png")
    assert np.abs(read_picture(tmp_path / "16.png").pixels.astype(int) - grey[..., None]).max() <= 1
    for mode in ("L", "P", "1", "CMYK", "YCbCr"):
        path = tmp_path / ("a.png" if mode in ("L", "P", "1") else "a.jpg")
        rgb.convert(mode).save(path, **({"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}))
        pixels = read_picture(path).pixels
        assert pixels.shape == (48, 72, 3)
        assert np.abs(centres(pixels) - centres(np.array(rgb.convert(mode).convert("RGB")))).max() < 12
    for mode in ("RGBA", "LA"):
        clear = rgb.convert(mode)
        clear.putalpha(0)
        clear.save(tmp_path / "clear.png")
        assert (read_picture(tmp_path / "clear.png").pixels == 255).all()  # over white


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime", "blue")]
    for name in ("a.gif", "a.webp"):
        options = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100, **options)
        assert (read_picture(tmp_path / name).pixels == (255, 0, 0)).all()


def png(path, width, height, *, rows=None):
    """An RGB PNG of one colour that never stands in memory whole; with fewer ``rows`` than it says it has."""
    packer, line = zlib.compressobj(1), b"\0" + b"\x10\x20\x30" * (width if rows is None else 8)
    content = b"".join([packer.compress(line) for _ in range(height if rows is None else rows)] + [packer.flush()])

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", content) + chunk(b"IEND", b""))
    return path


def read_elsewhere(path):
    """What another process reads of ``path``: the pixels' shape, the size, the first pixel; and megabytes it took."""
    code = (
        "import json, resource, sys, warnings\nwarnings.simplefilter('error')\n"
        "from detector.pictures import read_picture\nfrom detector.errors import InputError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    pixels, size = read_picture(sys.argv[1])\n"
        "    result = [pixels.shape, size, pixels[0, 0].tolist()]\n"
        "except InputError as error:\n    result = str(error)\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(json.dumps([result, (after - before) / 1024]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_108_megapixels_are_read_in_bounded_memory(tmp_path):
    # Decoding alone takes 432 MB as PNG; two copies of it would be 864 MB.
    result, megabytes = read_elsewhere(png(tmp_path / "large.png", 12_000, 9_000))
    assert result == [[4500, 6000, 3], [9000, 12_000], [0x10, 0x20, 0x30]]
    assert megabytes < 800
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("L", (12_000, 9_000), 77).save(tmp_path / "large.jpg", exif=exif)
    result, megabytes = read_elsewhere(tmp_path / "large.jpg")
    assert result == [[6000, 4500, 3], [12_000, 9_000], [77, 77, 77]]
    assert megabytes < 500


def test_a_large_image_is_the_small_one_enlarged(tmp_path):
    side = int((1.1 * LARGE / 6) ** 0.5) // 2 * 2
    image = Image.fromarray(CORNERS).resize((3 * side, 2 * side), Image.Resampling.NEAREST)
    image.save(tmp_path / "a.jpg", quality=95, subsampling=0)
    for form in (image, tmp_path / "a.jpg"):
        pixels, size = read_picture(form)
        assert size == (2 * side, 3 * side)
        assert pixels.shape == (side, 3 * side // 2, 3)
        assert np.abs(centres(pixels, side // 2) - CORNERS).max() < 8


def test_what_claims_to_be_enormous_is_refused_before_it_is_decoded(tmp_path):
    result, megabytes = read_elsewhere(png(tmp_path / "claim.png", 100_000, 100_000, rows=1))
    assert "claim.png can't be read: it says that it is 100000 x 100000 pixels" in result
    assert megabytes < 50
    assert 12_000 * 9_000 < MOST < 100_000**2
    assert Image.MAX_IMAGE_PIXELS  # Pillow's own bound is as it was


def test_files_that_are_no_images_are_one_sentence_each(tmp_path):
    whole = tmp_path / "whole.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:900])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image\n" * 9)
    (tmp_path / "folder.jpg").mkdir()
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    expected = {
        "missing.jpg": "No such file or directory",
        "cut.jpg": "truncated",
        "empty.jpg": "it is empty",
        "text.jpg": "it is no image of a known format",
        "folder.jpg": "Is a directory",
        "float.tif": "floating-point",
        "nul\0.jpg": "null",
    }
    for name, reason in expected.items():
        with pytest.raises(InputError) as caught:
            read_picture(str(tmp_path / name))
        said = str(caught.value)
        assert said.startswith(f"the image {tmp_path / name} can't be read: "), said
        assert reason in said
        assert "\n" not in said
        assert "<" not in said


def refusal(path):
    """What is said of an image, or None where it is one."""
    try:
        read_picture(path)
    except InputError as error:
        return str(error)
    return None


def test_damage_anywhere_in_a_file_is_an_image_or_one_sentence(tmp_path):
    generator = np.random.default_rng(0)
    for suffix in (".jpg", ".png", ".gif", ".tif", ".webp", ".bmp"):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(generator.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
        content = path.read_bytes()
        for _ in range(40):
            damaged = bytearray(content)
            for place in generator.integers(0, len(content), 4):
                damaged[place] = generator.integers(0, 256)
            path.write_bytes(damaged[: generator.integers(1, len(content) + 1)])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                said = refusal(path)
            assert said is None or (f"{path} can't be read: " in said and "\n" not in said)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((0, 5, 3), np.uint8), "no pixels: it is 5 wide and 0 high"),
        (torch.zeros(3, 4, 0, dtype=torch.uint8), "no pixels: it is 0 wide and 4 high"),
        (np.zeros((4, 5), np.uint8), r"shape \(4, 5\); an array must be uint8 RGB of shape \(H, W, 3\)"),
        (np.zeros((4, 5, 4), np.uint8), r"shape \(4, 5, 4\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"shape \(2, 4, 5, 3\)"),
        (np.zeros((4, 5, 3)), "an array of float64"),
        (torch.zeros(3, 4, 4), "a tensor of float32"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"must be uint8 of shape \(3, H, W\)"),
        (7, "not int"),
        (None, "not NoneType"),
        (b"\xff\xd8", "not bytes"),
    ],
)
def test_what_is_no_image_is_named(image, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        read_picture(image, "images[3]")
    assert str(caught.value).startswith("images[3] ")
