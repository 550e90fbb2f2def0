"""Picture files of any kind -> 8-bit pictures, or one line that says what is wrong with the file."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_prep.common.errors import CorruptRecordError
from data_prep.common.files import translate_os_errors

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif"})
PLAIN = ("RGB", "L")  # modes that need no conversion
MAX_BYTES, MAX_PIXELS = 1 << 30, 1 << 28
ORIENTATION = 0x0112  # EXIF tag
_DEEP = 65535


def read_picture(path: Path, *, upright: bool = True, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read one picture as 8-bit RGB, or grey where it is stored as 8-bit grey.

    Args:
        path: the file.
        upright: carry out the orientation that a camera noted.
        max_pixels: refuse larger pictures.

    Raises:
        DatasetNotFoundError: it is not there.
        CorruptRecordError: it is empty, damaged, no picture, or several.
    """
    with opened(path, read_bytes(path), max_pixels=max_pixels) as image:
        turned = ImageOps.exif_transpose(image) if upright else image
        if turned.mode in PLAIN:
            turned.load()
            return turned.copy()
        return to_rgb(turned)


def read_bytes(path: Path) -> bytes:
    """The whole file.

    Raises:
        DatasetNotFoundError: it is not there.
        CorruptRecordError: it is empty, or larger than any picture.
    """
    with translate_os_errors(path):
        size = path.stat().st_size
        if not size:
            raise CorruptRecordError(path, "byte 0", "the image file is empty (0 bytes)")
        if size > MAX_BYTES:
            raise CorruptRecordError(path, "file", f"the image file has {size:,} bytes")
        return path.read_bytes()


@contextlib.contextmanager
def opened(path: Path, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open a picture; whatever a damaged file does to a decoder inside the block becomes one line.

    Args:
        path: where the bytes come from.
        data: of the file.
        max_pixels: refuse larger pictures.

    Raises:
        CorruptRecordError: it is damaged, no picture, or several.
    """
    Image.init()  # else only the commonest formats are known
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, and of large images (checked here)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise CorruptRecordError(path, "header", "the image has more pixels than any camera")
                frames = getattr(image, "n_frames", 1)
                if frames > 1 and image.format != "MPO":  # a camera's JPEG with its own thumbnails behind it
                    raise CorruptRecordError(path, "file", f"the image has {frames} frames or pages: one is needed")
                yield image
    except CorruptRecordError:
        raise
    except UnidentifiedImageError:
        raise CorruptRecordError(path, "byte 0", "the file is no image, or a damaged one") from None
    except Image.DecompressionBombError:
        raise CorruptRecordError(path, "header", "the image has more pixels than any camera") from None
    except (OSError, EOFError, SyntaxError) as error:
        cut = isinstance(error, EOFError) or "runcated" in str(error)
        reason = "the file ends inside the image" if cut else f"the image cannot be decoded ({error})"
        raise CorruptRecordError(path, "pixels", reason) from None
    except Exception as error:  # a damaged header can break a decoder anywhere
        raise CorruptRecordError(path, "header", f"the image is damaged ({type(error).__name__})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image of any kind: 16 bits become 8, and what is transparent lies over black."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        top = float(values.max(initial=0.0))
        # the full range of 16 bits; images of 10, 12 or 14 bits, and those of 8, would be black on it
        full = _DEEP if top > _DEEP / 4 else max(top, 255.0)
        full = 1.0 if image.mode == "F" and top <= 1 else full  # shares of white
        grey = np.clip(values * (255 / max(full, top)), 0, 255).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layered = image.convert("RGBA")
        if layered.getchannel("A").getextrema()[1]:  # an image that is transparent everywhere was not meant to be
            return Image.alpha_composite(Image.new("RGBA", layered.size, (0, 0, 0, 255)), layered).convert("RGB")
        return layered.convert("RGB")
    return image.convert("RGB")


def encode_png(image: Image.Image) -> bytes:
    """PNG of a picture without any metadata: only what decodes the pixels."""
    buffer = io.BytesIO()
    Image.frombytes(image.mode, image.size, image.tobytes()).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
