"""Decoding: every mode, upright, on white, and an error that names the file for what is no image."""

import errno
import os
import signal
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from photos import odd_photos
from PIL import Image, ImageOps

from xrvlm import views
from xrvlm.errors import UserError
from xrvlm.views import SUFFIXES, decode, load_images, read_image, to_rgb


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def noise(width: int = 40, height: int = 24) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def pixel(image: Image.Image) -> tuple[int, ...]:
    value = image.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize(("mode", "colour", "expected"), [
    ("1", 1, (255, 255, 255)),
    ("L", 77, (77, 77, 77)),
    ("RGB", (9, 80, 200), (9, 80, 200)),
    ("RGBX", (9, 80, 200, 0), (9, 80, 200)),
    ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ("YCbCr", (76, 85, 255), (254, 0, 0)),
    ("HSV", (0, 255, 255), (255, 0, 0)),
    ("LAB", (255, 128, 128), (255, 255, 255)),
    ("I", 65535, (255, 255, 255)),
    ("I", 257 * 40, (40, 40, 40)),
    ("I;16", 257 * 40, (40, 40, 40)),
    ("I;16L", 257 * 40, (40, 40, 40)),
    ("I;16B", 257 * 40, (40, 40, 40)),
    ("F", 0.5, (128, 128, 128)),
    ("F", 51.0, (51, 51, 51)),
    ("F", 257.0 * 40, (40, 40, 40)),
    ("LA", (0, 0), (255, 255, 255)),
    ("La", (0, 0), (255, 255, 255)),
    ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
    ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
    ("RGBa", (0, 0, 0, 51), (204, 204, 204)),
])
def test_every_mode_becomes_rgb_with_its_colour(mode, colour, expected):
    image = to_rgb(Image.new(mode, (3, 2), colour))
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert pixel(image) == pytest.approx(expected, abs=4 if mode == "LAB" else 1)


def test_palette_becomes_its_colours():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert pixel(to_rgb(image)) == (10, 200, 30)
    assert pixel(to_rgb(image.convert("PA"))) == (10, 200, 30)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_transparent_palette_is_laid_on_white(transparency):
    image = Image.new("P", (2, 1), 1)
    image.putpalette([200, 0, 0, 0, 0, 0])
    image.putpixel((0, 0), 0)
    decoded = decode(encoded(image, transparency=transparency), "a.png")
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(200, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(("mode", "colour"), [("L", 0), ("RGB", (1, 2, 3))])
def test_a_colour_declared_transparent_is_laid_on_white(mode, colour):
    assert pixel(decode(encoded(Image.new(mode, (2, 2), colour), transparency=colour), "a.png")) == (255, 255, 255)


def test_transparent_gif_is_laid_on_white():
    image = Image.new("P", (2, 2), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert pixel(decode(encoded(image, "GIF", transparency=0), "a.gif")) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(kind):
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)    # 0, 257 ... 65535
    decoded = np.asarray(decode(encoded(Image.fromarray(ramp), kind), "ramp"))
    assert (decoded[..., 0].ravel() == np.arange(256)).all()
    assert (decoded == decoded[..., :1]).all()


def test_a_dark_16_bit_image_stays_dark():
    assert pixel(to_rgb(Image.new("I;16", (2, 2), 300))) == (1, 1, 1)


def test_what_is_clear_or_counted_from_white_in_16_bits(tmp_path):
    photos = odd_photos(tmp_path)
    plain = np.asarray(read_image(photos["grey16.png"])).astype(int)
    assert (np.asarray(read_image(photos["negative16.tif"])) == 255 - plain).all()
    assert (np.asarray(read_image(photos["turned_negative16.tif"])) == 255 - np.rot90(plain, 3)).all()
    clear = plain == plain[3, 4]
    found = np.asarray(read_image(photos["clear16.png"]))
    assert (found[clear] == 255).all()
    assert (found == plain)[~clear].all()


def test_16_bit_pgm_is_scaled():
    data = b"P5 2 1 65535\n" + np.array([65535, 257 * 7], dtype=">u2").tobytes()
    decoded = decode(data, "a.pgm")
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (7, 7, 7)]


def test_whole_numbers_of_8_bits_are_8_bits_but_where_the_file_holds_16(tmp_path):
    few = np.arange(256, dtype=np.int32).reshape(16, 16)
    for image in (Image.fromarray(few), decode(encoded(Image.fromarray(few), "TIFF"), "a.tif")):
        assert (np.asarray(to_rgb(image))[..., 0] == few).all()
    assert (np.asarray(to_rgb(Image.fromarray(few * 257)))[..., 0] == few).all()
    (tmp_path / "dark.pgm").write_bytes(b"P5 2 1 65535\n" + np.array([255, 0], dtype=">u2").tobytes())
    with Image.open(tmp_path / "dark.pgm") as dark:
        assert (dark.mode, pixel(read_image(dark))) == ("I", (1, 1, 1))
    assert pixel(read_image(tmp_path / "dark.pgm")) == (1, 1, 1)


def test_an_infinite_pixel_is_white_and_leaves_the_others_as_they_are():
    odd = np.array([[np.inf, 128.0, 255.0, -np.inf, np.nan]], dtype=np.float32)
    assert np.asarray(to_rgb(Image.fromarray(odd)))[0, :, 0].tolist() == [255, 128, 255, 0, 0]


def test_values_beyond_16_bits_and_floats_that_are_no_number():
    large = np.array([[0, 2 ** 30, 2 ** 31 - 1, -5]], dtype=np.int32)
    assert np.asarray(to_rgb(Image.fromarray(large)))[0, :, 0].tolist() == [0, 128, 255, 0]
    odd = np.array([[np.nan, 1.0, -1.0]], dtype=np.float32)
    assert np.asarray(to_rgb(Image.fromarray(odd)))[0, :, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(kind, orientation):
    blocks = np.zeros((32, 64, 3), dtype=np.uint8)
    blocks[:16, :32] = 255
    blocks[:16, 32:] = 90
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(blocks)
    decoded = decode(encoded(stored, kind, exif=exif), "photo")
    with_exif = Image.open(BytesIO(encoded(stored, "PNG", exif=exif)))    # Pillow's own idea of upright
    upright = np.asarray(ImageOps.exif_transpose(with_exif).convert("RGB")).astype(int)
    assert decoded.size == upright.shape[1::-1]
    assert abs(np.asarray(decoded).astype(int) - upright).mean() < 6


def test_orientation_6_turns_a_quarter_to_the_right():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8))    # red, then blue to its right
    decoded = decode(encoded(stored, exif=exif), "photo")
    assert [decoded.getpixel((0, y)) for y in (0, 1)] == [(255, 0, 0), (0, 0, 255)]


def test_broken_metadata_does_not_lose_the_photo():
    data = encoded(noise(), "PNG", exif=b"Exif\x00\x00no tiff header at all")
    assert np.array_equal(np.asarray(decode(data, "a.png")), np.asarray(noise()))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "JPEG", "WEBP"])
def test_formats(kind):
    image = decode(encoded(noise(), kind), "photo")
    assert (image.mode, image.size) == ("RGB", (40, 24))


def test_pixels_are_kept_by_lossless_formats():
    assert np.array_equal(np.asarray(decode(encoded(noise()), "a.png")), np.asarray(noise()))


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert pixel(decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "a.gif")) == (255, 0, 0)


@pytest.mark.parametrize(("data", "problem"), [
    (b"", "the file is empty"),
    (b"<html>404 not found</html>", "not an image"),
    (b"\x89PNG\r\n\x1a\n", "."),
    (b"\xff\xd8\xff\xe0 and no more", "."),
    (encoded(noise(), "JPEG")[:1200], "truncated"),
    (encoded(noise())[:600], "."),
    (encoded(noise(), "WEBP")[:300], "."),
    (encoded(noise(), "TIFF")[:300], "."),
    (encoded(noise(), "EPS"), "not an image"),
])
def test_what_cannot_be_decoded_is_named_with_the_fix(data, problem):
    with pytest.raises(UserError, match=problem) as raised:
        decode(data, "robin/photo (1).jpg")
    message = str(raised.value)
    assert message.startswith("cannot read the image robin/photo (1).jpg: ")
    assert message.endswith("remove or replace it (of a data set, skip_damaged=True leaves such files out)")
    assert "\n" not in message


@pytest.mark.parametrize("limit", [100, 600])    # Pillow raises over twice the limit, and only warns below that
def test_too_many_pixels(monkeypatch, limit):
    data = encoded(noise())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=r"too many pixels.*make it smaller"):
        decode(data, "huge.png")


def test_suffixes():
    assert {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"} <= SUFFIXES
    assert not {".eps", ".pdf", ".txt", ".csv", ".json", ".db"} & SUFFIXES


def test_an_open_image_is_read_as_its_file(tmp_path):
    for name, path in odd_photos(tmp_path).items():
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(read_image(image)), np.asarray(read_image(path))), name


def test_a_damaged_image_that_is_open_is_named(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with Image.open(path) as image, pytest.raises(UserError, match=r"cannot read the image .*cut\.jpg: image file is"):
        read_image(image)


@pytest.mark.parametrize(("suffix", "module"), [(".heic", "pillow_heif"), (".avif", "PIL")])
def test_formats_of_phones(tmp_path, suffix, module):
    pytest.importorskip(module)
    if suffix not in SUFFIXES:
        pytest.skip(f"this Pillow reads no {suffix}")
    Image.new("RGB", (32, 24), (200, 30, 60)).save(tmp_path / f"1{suffix}")
    found = read_image(tmp_path / f"1{suffix}")
    assert found.size == (32, 24)
    assert np.abs(np.asarray(found).astype(int) - (200, 30, 60)).max() < 12


class Deadly:
    """A source whose reader the system kills."""

    def read(self, _: str) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""


@pytest.mark.skipif(sys.platform != "linux", reason="the processes that decode are forked on Linux")
def test_a_decoding_process_that_the_system_kills_is_told():
    batches = load_images(["a"], Deadly(), lambda image, _: image, [torch.tensor([0])], 1, torch.device("cpu"))
    with pytest.raises(UserError, match="the system ended a process that decodes images, .*; fewer .* with workers=0"):
        list(batches)


def test_too_few_open_files_are_told():
    def opened():
        raise OSError(errno.EMFILE, "Too many open files")
        yield

    with pytest.raises(UserError, match=r"opens no more files .* \(ulimit -n\); fewer .* with workers=2"):
        list(views._surviving(opened(), 4))
    with pytest.raises(UserError, match=r"\(ulimit -n\)$"):
        list(views._surviving(opened(), 0))


class Broken:
    """A source with a mistake in it."""

    def read(self, _: str) -> bytes:
        raise RuntimeError("shapes do not match")


def test_another_mistake_in_a_decoding_process_stays_what_it_is():
    batches = load_images(["a"], Broken(), lambda image, _: image, [torch.tensor([0])], 1, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(batches)


@pytest.mark.parametrize("values", [np.arange(32 * 48, dtype=np.uint8), np.arange(32 * 48, dtype=np.uint16) * 40],
                         ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_open_tiff_is_turned_as_its_file_is(tmp_path, values, orientation):
    """Pillow maps an uncompressed one into memory and then forgets to turn it."""
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(values.reshape(32, 48)).save(tmp_path / "q.tif", exif=exif)
    of_file = read_image(tmp_path / "q.tif")
    assert of_file.size == ((32, 48) if orientation > 4 else (48, 32))
    with Image.open(tmp_path / "q.tif") as opened:
        assert np.array_equal(np.asarray(read_image(opened)), np.asarray(of_file))
    (tmp_path / "q.tif").rename(tmp_path / "moved.tif")
    with Image.open(tmp_path / "moved.tif") as opened:
        opened.load()                    # read before: it is what it is
        assert read_image(opened).mode == "RGB"


@pytest.mark.parametrize("size", [(1, 60000), (60000, 1), (2, 1002)])
def test_a_photo_as_thin_as_a_thread_is_unreadable(tmp_path, size):
    """Resized to a tower's width it would fill the memory, of a file of 256 bytes."""
    Image.new("RGB", size).save(tmp_path / "thread.png")
    message = rf"thread.png: it has {size[0]} x {size[1]} pixels, one side over 500 times the other"
    for given in (tmp_path / "thread.png", Image.open(tmp_path / "thread.png")):
        with pytest.raises(UserError, match=message):
            read_image(given)
    with pytest.raises(UserError, match=message):
        decode((tmp_path / "thread.png").read_bytes(), "thread.png")
    Image.new("RGB", (2, 1000)).save(tmp_path / "strip.png")
    assert read_image(tmp_path / "strip.png").size == (2, 1000)
