"""The quick decoder: Pillow's pixels, for every kind of JPEG and for what is none."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from detector.data import jpeg
from detector.data.images import decode_image
from tests.detector.data.sets import noise

SIZE = (93, 131)
KINDS = {
    "4:2:0": {"subsampling": 2},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0},
    "progressive": {"progressive": True},
    "own tables": {"optimize": True},
    "restart markers": {"restart_marker_blocks": 3},
    "no YCbCr": {"keep_rgb": True},
    "coarse": {"quality": 12},
}


def rough(height: int, width: int) -> np.ndarray:
    """Smooth colours with sharp edges and grain, so that rounding and upsampling show."""
    random = np.random.default_rng(height)
    drawn = noise(height, width).astype(int) + random.integers(-40, 41, (height, width, 3))
    drawn[height // 3 :: 7] = 255 - drawn[height // 3 :: 7]
    return drawn.clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def quick_only(monkeypatch):
    """From here on whatever isn't decoded the quick way fails."""

    def refuse(content, **_):
        raise AssertionError("this went the slow way")

    monkeypatch.setattr(jpeg, "decode_image", refuse)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("size", [SIZE, (16, 16), (1, 1), (8, 129)])
def test_plain_jpegs_have_pillows_pixels(options, size, monkeypatch):
    content = encoded(Image.fromarray(rough(*size)), **options)
    expected = decode_image(content, size=size)
    assert jpeg._same_pixels()
    quick_only(monkeypatch)
    found = jpeg.decode(memoryview(content), size=size)
    assert np.array_equal(found, expected)
    assert found.flags.c_contiguous
    assert found.dtype == np.uint8


def test_grey_jpegs_too(monkeypatch):
    content = encoded(Image.fromarray(rough(*SIZE)).convert("L"))
    expected = decode_image(content, size=SIZE)
    assert jpeg._same_pixels()
    quick_only(monkeypatch)
    assert np.array_equal(jpeg.decode(content, size=SIZE), expected)


@pytest.mark.parametrize(("form", "mode"), [("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "LA"), ("WEBP", "RGB")])
def test_anything_else_is_pillows(form, mode):
    content = encoded(Image.fromarray(rough(*SIZE)).convert(mode), form)
    assert np.array_equal(jpeg.decode(content, size=SIZE), decode_image(content, size=SIZE))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_camera_held_upright_is_turned_only_where_the_annotations_say_so(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(rough(*SIZE)), exif=exif)
    sizes = [SIZE, SIZE[::-1]] if orientation == 6 else [SIZE]
    for size in sizes:
        found = jpeg.decode(content, size=size)
        assert np.array_equal(found, decode_image(content, size=size))
        assert found.shape[:2] == size


@pytest.mark.parametrize(
    "spoil", [lambda c: c[: len(c) // 2], lambda c: c[:200], lambda c: b"\xff\xd8\xff", lambda c: b""]
)
def test_what_is_wrong_is_said_in_the_same_words(spoil):
    content = spoil(encoded(Image.fromarray(rough(*SIZE))))
    with pytest.raises(ValueError, match="it can't be decoded") as quick:
        jpeg.decode(content, size=SIZE)
    with pytest.raises(ValueError, match="it can't be decoded") as slow:
        decode_image(content, size=SIZE)
    assert str(quick.value) == str(slow.value)
    with pytest.raises(ValueError, match="its annotations say width 5, height 4"):
        jpeg.decode(encoded(Image.fromarray(rough(*SIZE))), size=(4, 5))


def test_a_decoder_with_other_pixels_is_not_used_and_the_log_says_so(monkeypatch, caplog):
    content = encoded(Image.fromarray(rough(*SIZE)))
    honest = jpeg._decoded
    monkeypatch.setattr(jpeg, "_decoded", lambda content: honest(content) ^ 1)
    jpeg._same_pixels.cache_clear()
    try:
        assert np.array_equal(jpeg.decode(content, size=SIZE), decode_image(content, size=SIZE))
        assert "Pillow decodes" in caplog.text
    finally:
        jpeg._same_pixels.cache_clear()


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("size", [(96, 160), (93, 131), (17, 9)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_reduced_pixels_are_means_of_so_many_by_so_many(reduction, size, form):
    whole = noise(*size)
    options = {"quality": 97, "subsampling": 0} if form == "JPEG" else {}
    found = jpeg.decode(encoded(Image.fromarray(whole), form, **options), size=size, reduction=reduction)
    assert found.shape == (-(-size[0] // reduction), -(-size[1] // reduction), 3)
    height, width = (side // reduction for side in size)
    inner = whole[: height * reduction, : width * reduction].astype(float)
    means = inner.reshape(height, reduction, width, reduction, 3).mean((1, 3))
    assert np.abs(found[:height, :width] - means).mean() < (2.0 if form == "JPEG" else 0.51)


def test_reduced_and_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(noise(*SIZE)), quality=95, exif=exif)
    found = decode_image(content, size=SIZE[::-1], reduction=4)
    assert found.shape == (33, 24, 3)
    upright = np.rot90(decode_image(content, size=SIZE, reduction=4), -1)
    assert np.array_equal(found, upright)
