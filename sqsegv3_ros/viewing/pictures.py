# SPDX-License-Identifier: Apache-2.0
"""Pictures of scans as RGB arrays: colours of ranges, classes and errors, bird's-eye view, PNG encoding."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.errors import missing_package

if TYPE_CHECKING:
    from PIL import Image

Picture = npt.NDArray[np.uint8]
"""(H, W, 3) RGB."""

BACKGROUND = (16, 18, 22)
"""Colour of empty pixels: darker than every class colour, and not quite black."""
UNLABELED = (96, 98, 104)
"""Colour of classes that the label set draws black, so that their points differ from empty pixels."""
NEAREST_M, FARTHEST_M = 2.0, 80.0
"""Ends of the range colours. Fixed, so that the pictures of a drive can be compared."""

ERROR_COLORS = {"right": (78, 84, 96), "wrong": (255, 84, 64), "missed": (255, 190, 70), "not_evaluated": (40, 42, 48)}
"""Colours of points compared with the ground truth."""
ERROR_NAMES = {"right": "right", "wrong": "wrong", "missed": "left unlabeled", "not_evaluated": "no true class"}
"""Captions of `ERROR_COLORS`."""

# Every 15th colour of a ramp with evenly rising OKLab lightness at the highest chroma that sRGB shows: equal steps look
# equally large, also in grey and to colour-blind readers
_RAMP = np.frombuffer(
    bytes.fromhex(
        "330379 2d2282 243885 1e4985 185889 0f668e 037492 018196 118e97 "
        "239b98 34a897 44b694 54c38d 66d07c 85db63 ace243 d3e720 f9ea00"
    ),
    dtype=np.uint8,
).reshape(-1, 3)
COLOR_MAP: Picture = np.stack(
    [np.rint(np.interp(np.arange(256), np.arange(0, 256, 15), channel)).astype(np.uint8) for channel in _RAMP.T], axis=1
)
"""(256, 3) colours from dark blue to bright yellow."""


def range_picture(range_m: npt.NDArray[Any]) -> Picture:
    """Colour a range image: near is bright yellow, far is dark blue, empty pixels are `BACKGROUND`.

    The scale is logarithmic, so equal ratios of range look alike. Ranges outside `NEAREST_M`..`FARTHEST_M` take the
    colour of that end.

    Args:
        range_m: (H, W) ranges in metres; not positive or not finite where empty.

    Returns:
        (H, W, 3) uint8.
    """
    filled = np.isfinite(range_m) & (range_m > 0)
    clipped = np.clip(np.where(filled, range_m, FARTHEST_M), NEAREST_M, FARTHEST_M)
    picture = ramp_colors(1.0 - np.log(clipped / NEAREST_M) / np.log(FARTHEST_M / NEAREST_M))
    picture[~filled] = BACKGROUND
    return picture


def ramp_colors(position: npt.NDArray[Any]) -> Picture:
    """Look up positions 0 (dark) to 1 (bright), of any shape, in `COLOR_MAP`."""
    return COLOR_MAP[np.rint(position * 255).astype(np.intp)]


def display_colors(labels: LabelSet) -> Picture:
    """Get the (C, 3) colours of a label set for a dark background: black becomes `UNLABELED`."""
    colors = labels.colors.copy()
    colors[~colors.any(axis=1)] = UNLABELED
    return colors


@dataclass(frozen=True)
class Layer:
    """One colouring of a scan.

    Attributes:
        caption: What it shows.
        colors: uint8 RGB, (N, 3) of points or (H, W, 3) of pixels.
    """

    caption: str
    colors: Picture


def label_layers(
    label_set: LabelSet,
    labels: npt.NDArray[Any] | None,
    truth: npt.NDArray[Any] | None,
    captions: tuple[str, str] = ("labels", "compared with"),
) -> list[Layer]:
    """Colour points by label and, if there are true labels, by true label and by error.

    Args:
        label_set: Classes of the labels.
        labels: (N,) labels; None for no layer at all.
        truth: (N,) labels to compare with, or None.
        captions: Captions of labels and truth.
    """
    if labels is None:
        return []
    colors = display_colors(label_set)
    layers = [Layer(captions[0], colors[labels])]
    if truth is not None:
        error_colors = np.array(list(ERROR_COLORS.values()), dtype=np.uint8)
        layers.append(Layer(captions[1], colors[truth]))
        layers.append(Layer("errors", error_colors[error_kinds(label_set, labels, truth)]))
    return layers


def error_kinds(label_set: LabelSet, labels: npt.NDArray[Any], truth: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Compare (N,) labels with (N,) true labels; returns each point's position in `ERROR_COLORS`."""
    evaluated = np.isin(np.arange(len(label_set)), label_set.evaluated)
    kind = np.where(labels == truth, 0, np.where(evaluated[labels], 1, 2))
    return np.where(evaluated[truth], kind, 3)


def image_of_points(colors: Picture, index: npt.NDArray[np.int64]) -> Picture:
    """Colour an image by the (N, 3) colours of points and the (H, W) index of each pixel's point, -1 where empty."""
    picture = np.full((*index.shape, 3), BACKGROUND, dtype=np.uint8)
    picture[index >= 0] = colors[index[index >= 0]]
    return picture


def birds_eye_picture(
    points: npt.NDArray[np.float32], colors: Picture, radius_m: float, background: Picture
) -> Picture:
    """Draw points as 2 x 2 pixels from above: x (forward) up, y (left) to the left; the highest point wins.

    The sensor is in the middle.

    Args:
        points: (N, 3 or more) x, y, z in metres; points that are not finite or outside are left out.
        colors: (N, 3) uint8.
        radius_m: Distance from the middle to the edge.
        background: (S, S, 3) picture below the points; it is not changed.

    Returns:
        (S, S, 3) uint8.
    """
    size = len(background)
    pixels_per_metre = size / (2 * radius_m)
    near = (np.abs(points[:, :2]) < radius_m).all(axis=1)  # False for NaN
    inside = np.flatnonzero(near & np.isfinite(points[:, 2]))
    inside = inside[np.argsort(points[inside, 2], kind="stable")]  # ascending: numpy keeps the last of repeated indices
    row = np.floor((radius_m - points[inside, 0]) * pixels_per_metre).astype(np.int64)
    column = np.floor((radius_m - points[inside, 1]) * pixels_per_metre).astype(np.int64)
    winner = np.full((size + 1, size + 1), -1, dtype=np.int64)  # squares may reach over the edge by one pixel
    steps = np.arange(2)
    winner[(row[:, None] + steps)[:, :, None], (column[:, None] + steps)[:, None, :]] = inside[:, None, None]
    winner = winner[:size, :size]
    picture = background.copy()
    drawn = winner >= 0
    picture[drawn] = colors[winner[drawn]]
    return picture


def encode_png(picture: Picture | Image.Image, compress_level: int = 6) -> bytes:
    """Encode a picture as a PNG file.

    Args:
        picture: (H, W, 3) uint8, or a Pillow image.
        compress_level: 0 (fast) to 9 (small).

    Raises:
        UserError: Pillow is not installed.
    """
    require_pillow()
    from PIL import Image

    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=compress_level)
    return buffer.getvalue()


def require_pillow() -> None:
    """Raise UserError unless Pillow is installed, in a version that has a built-in font of any size."""
    try:
        import PIL
    except ImportError as error:
        raise missing_package("Pillow", "drawing a picture", "tools") from error
    if tuple(map(int, PIL.__version__.split(".")[:2])) < (10, 1):
        raise missing_package("Pillow>=10.1", f"drawing a picture (found {PIL.__version__})", "tools")
