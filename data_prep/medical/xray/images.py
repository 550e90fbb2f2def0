"""PNG, JPEG, TIFF and BMP -> 8-bit grey (or RGB); lung masks -> 0 and 255."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_prep.common.errors import PrepError
from data_prep.medical.xray.errors import (
    ConstantImageError,
    MultiFrameError,
    NotAnImageError,
    TruncatedImageError,
    UnsupportedImageError,
)
from data_prep.medical.xray.pixels import U8, Radiograph, check_size, read_bytes, to_grey

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".pgm"})
_DEEP = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})  # modes of more than 8 bits
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF


def read_image(path: Path, percentile: float = 0.0, channels: int = 1) -> Radiograph:
    """Read one image file.

    8-bit images are taken as they are. Deeper ones are stretched from minimum to maximum, because 10, 12 or 14 bits in
    a 16-bit file are common and nothing in it says so. Transparent pixels lie over black, palettes and colours become
    their brightness, and the orientation that a camera has noted is carried out.

    Args:
        path: the file.
        percentile: as in `read_dicom`; 8-bit images are stretched, too, if it is not 0.
        channels: 1 grey, 3 RGB.

    Raises:
        CorruptRecordError: one of its kinds in `errors`.
    """
    pixels = _load(path, percentile, channels)
    if pixels.min() == pixels.max():
        raise ConstantImageError(path, "pixel data", "all pixels have one value")
    if percentile and channels == 1:
        pixels = to_grey(path, pixels, percentile)
    return Radiograph(pixels)


def read_mask(path: Path) -> U8:
    """Read a mask: white (at least half of full white) is lung.

    Shape:
        -> (height, width) uint8, 0 or 255.

    Raises:
        CorruptRecordError: one of its kinds in `errors`.
    """
    pixels = _load(path, 0.0, 1, deep_as_is=True)
    # Masks of 0 and 1 are as common as those of 0 and 255.
    white = 1 if pixels.max() == 1 else 128
    return np.where(pixels >= white, 255, 0).astype(np.uint8)


def resize(pixels: U8, max_side: int) -> U8:
    """Shrink so that the longest side is at most `max_side`, by area; small images stay as they are.

    Shape:
        (height, width[, 3]) -> the same proportions.
    """
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if longest <= max_side:
        return pixels
    size = (max(1, round(width * max_side / longest)), max(1, round(height * max_side / longest)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def resize_mask(mask: U8, height: int, width: int) -> U8:
    """Bring a mask to a size by its nearest pixels, so that it stays a mask."""
    if mask.shape == (height, width):
        return mask
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)


def encode_png(pixels: U8) -> bytes:
    """PNG without any metadata: only what decodes the pixels."""
    stored = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    done, data = cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise RuntimeError("OpenCV cannot write PNG")
    return data.tobytes()


def _load(path: Path, percentile: float, channels: int, *, deep_as_is: bool = False) -> U8:
    data = read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, and of large images (checked below)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _convert(image, path, percentile, channels, deep_as_is=deep_as_is)
    except PrepError:
        raise
    except UnidentifiedImageError:
        reason = "no PNG, JPEG, TIFF or BMP image, or a damaged one"
        raise NotAnImageError(path, "byte 0", reason) from None
    except Image.DecompressionBombError:
        raise UnsupportedImageError(path, "header", "more pixels than any radiograph has") from None
    except (OSError, EOFError) as error:
        if isinstance(error, EOFError) or "runcated" in str(error):
            raise TruncatedImageError(path, "pixel data", "the file ends inside the image") from error
        raise NotAnImageError(path, "pixel data", f"cannot be decoded ({error})") from error
    except Exception as error:  # a damaged header can break a parser anywhere
        raise NotAnImageError(path, "header", f"damaged ({type(error).__name__})") from error


def _convert(image: Image.Image, path: Path, percentile: float, channels: int, *, deep_as_is: bool) -> U8:
    check_size(path, image.height, image.width)
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and image.format != "MPO":  # a camera's JPEG with its own thumbnails behind it
        raise MultiFrameError(path, "file", f"{pages} pages or frames: one image per file is read")
    white_is_zero = image.format == "TIFF" and dict(image.tag_v2).get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # type: ignore[attr-defined]
    image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP:
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise NotAnImageError(path, "pixel data", "values that are no numbers")
        if deep_as_is:
            return np.asarray(np.where(values > values.max() / 2, 255, 0), dtype=np.uint8)
        grey = to_grey(path, values, percentile)
        grey = 255 - grey if white_is_zero else grey  # Pillow inverts 8-bit TIFFs, deeper ones it does not
        return np.repeat(grey[..., None], 3, axis=2) if channels == 3 else grey
    return np.asarray(_over_black(image).convert("RGB" if channels == 3 else "L"), dtype=np.uint8)


def _over_black(image: Image.Image) -> Image.Image:
    """Without transparency; an image that is transparent everywhere was not meant to be."""
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return image
    layered = image.convert("RGBA")
    if not layered.getchannel("A").getextrema()[1]:
        return layered.convert("RGB")
    black = Image.new("RGBA", layered.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, layered).convert("RGB")
