"""Pictures in memory, as the engine takes them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Union

from .errors import InputError

if TYPE_CHECKING:
    import numpy
    import PIL.Image

PathLike = Union[str, "os.PathLike[str]"]
Image = Union[PathLike, "numpy.ndarray", "PIL.Image.Image"]
"""A photograph: a path or URL, an array, or a picture of PIL."""

Pixels = tuple[int, int, bytes]
"""Width, height, and the bytes of the pixels, row by row."""

TAKEN = "arrays of 8 bits (`numpy.uint8`) of height x width, or height x width x 1, 3 or 4, would work"


def separated(images: Union[Image, Iterable[Image]]) -> tuple[list[str], list[Pixels]]:
    """Returns the paths and URLs among images, and the pixels of those in memory. A single image may be given alone."""
    alone = isinstance(images, (str, os.PathLike)) or _is_pil(images) or (_is_array(images) and images.ndim < 4)
    every: Iterable[Any] = [images] if alone else images  # type: ignore[list-item,assignment]
    named: list[str] = []
    pictures: list[Pixels] = []
    for image in every:
        if isinstance(image, (str, os.PathLike)):
            named.append(os.fspath(image))
        else:
            pictures.append(_pixels(image))
    return named, pictures


def _is_pil(image: Any) -> bool:
    return hasattr(image, "getbands") and hasattr(image, "tobytes")


def _is_array(image: Any) -> bool:
    return hasattr(image, "__array_interface__") and hasattr(image, "ndim")


def _pixels(image: Any) -> Pixels:
    if _is_pil(image):
        return _of_pil(image)
    if not _is_array(image):
        raise InputError(f"a {type(image).__name__} is no photograph; paths, URLs, pictures of PIL, and {TAKEN}", "images")
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.dtype != "uint8" or image.ndim not in (2, 3) or channels not in (1, 3, 4):
        shape = " x ".join(map(str, image.shape))
        raise InputError(f"a photograph is an array of {image.dtype} of {shape}; {TAKEN}", "images")
    return image.shape[1], image.shape[0], image.tobytes()


def _of_pil(image: Any) -> Pixels:
    """Returns the pixels of a picture of PIL, turned as the orientation in its file says, as photographs in files are."""
    from PIL import ImageOps

    if image.mode.startswith(("I", "F")):
        raise InputError(f"a picture of PIL has the mode {image.mode}, more than 8 bits; `.convert(\"L\")` would work", "images")
    image = ImageOps.exif_transpose(image)
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGB")
    return image.width, image.height, image.tobytes()
