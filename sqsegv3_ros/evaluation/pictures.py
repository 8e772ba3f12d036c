"""LiDAR images, label images and labelled points go in; pictures, (H, W, 3) uint8 RGB, come out. Needs numpy only."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import LabelSet

if TYPE_CHECKING:
    from sqsegv3_ros.inference.range_image import RangeImage

Picture = npt.NDArray[np.uint8]

BACKGROUND = (16, 18, 22)
"""What empty pixels look like: darker than every class colour, and not quite black."""
UNLABELED = (96, 98, 104)
"""What classes with the colour black look like, so that their points can be told from empty pixels."""
NEAREST_M, FARTHEST_M = 2.0, 80.0
"""The ends of the range colours. Fixed, so that the pictures of a drive can be compared."""

ERROR_COLORS = {"right": (78, 84, 96), "wrong": (255, 84, 64), "missed": (255, 190, 70), "unjudged": (40, 42, 48)}
ERROR_NAMES = {"right": "right", "wrong": "wrong", "missed": "left unlabeled", "unjudged": "no true class"}
"""What the kinds of errors look like, and what they are called."""

# Bjorn Ottosson's OKLab: cube roots of cone responses -> linear sRGB
_OKLAB_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def range_picture(
    image: RangeImage | npt.NDArray[Any], nearest_m: float = NEAREST_M, farthest_m: float = FARTHEST_M
) -> Picture:
    """A range image coloured by range: near is bright yellow, far is dark blue, empty pixels are `BACKGROUND`.

    image: a RangeImage or its range, (H, W) metres, -1 (or anything not positive) where empty. Ranges outside
    nearest_m..farthest_m take the colour of that end. The scale is logarithmic: equal ratios of range look alike.
    """
    range_m = image if isinstance(image, np.ndarray) else image.range.cpu().numpy()
    filled = np.isfinite(range_m) & (range_m > 0)
    picture = colors_of_range(np.where(filled, range_m, farthest_m), nearest_m, farthest_m)
    picture[~filled] = BACKGROUND
    return picture


def colors_of_range(range_m: npt.NDArray[Any], nearest_m: float = NEAREST_M, farthest_m: float = FARTHEST_M) -> Picture:
    """Positive ranges in metres, any shape -> their colours, shape + (3,) uint8, as in `range_picture`."""
    position = np.log(np.clip(range_m, nearest_m, farthest_m) / nearest_m) / np.log(farthest_m / nearest_m)
    return color_map()[np.rint((1.0 - position) * 255).astype(np.intp)]


def label_picture(
    label_image: npt.NDArray[Any], colors: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_] | None = None
) -> Picture:
    """A label image in class colours.

    label_image: (H, W) labels. colors: (C, 3) uint8 by label (`LabelSet.colors`, or `display_colors`). mask: (H, W)
    bool, pixels that hold a point; the others become `BACKGROUND`.
    """
    picture = colors[label_image]
    if mask is not None:
        picture[~mask] = BACKGROUND
    return picture


def display_colors(labels: LabelSet) -> Picture:
    """(C, 3) the colours of a label set for pictures on a dark background: black becomes `UNLABELED`."""
    colors = labels.colors.copy()
    colors[~colors.any(axis=1)] = UNLABELED
    return colors


@dataclass(frozen=True)
class Layer:
    """One colouring: a caption, and colours, (N, 3) of points or (H, W, 3) of pixels, uint8."""

    caption: str
    colors: Picture


def label_layers(
    label_set: LabelSet,
    labels: npt.NDArray[Any] | None,
    truth: npt.NDArray[Any] | None,
    captions: tuple[str, str] = ("labels", "compared with"),
) -> list[Layer]:
    """The colourings of points that labels (N,) and, to compare with, true labels (N,) give: labels, truth, errors."""
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
    """(N,) labels and true labels -> (N,) which of `ERROR_COLORS` each point is, by position."""
    evaluated = np.isin(np.arange(len(label_set)), label_set.evaluated)
    kind = np.where(labels == truth, 0, np.where(evaluated[labels], 1, 2))
    return np.where(evaluated[truth], kind, 3)


def image_of_points(colors: Picture, index: npt.NDArray[np.int64]) -> Picture:
    """(N, 3) colours of points and the (H, W) point of each pixel, -1 where empty -> (H, W, 3)."""
    picture = np.full((*index.shape, 3), BACKGROUND, dtype=np.uint8)
    picture[index >= 0] = colors[index[index >= 0]]
    return picture


def birds_eye_picture(
    points: npt.NDArray[np.float32], colors: Picture, radius_m: float, background: Picture, splat: int = 2
) -> Picture:
    """Points seen from above: x (forward) up, y (left) to the left, the sensor in the middle; the highest point wins.

    points: (N, 3 or more) x, y, z in metres; those that are not finite or outside are left out. colors: (N, 3) uint8.
    radius_m: from the middle to the edge. background: (S, S, 3), what shows where no point is; stays as it is.
    splat: edge of a point's square, in pixels. Returns (S, S, 3).
    """
    size = len(background)
    pixels_per_metre = size / (2 * radius_m)
    near = (np.abs(points[:, :2]) < radius_m).all(axis=1)  # False for NaN
    inside = np.flatnonzero(near & np.isfinite(points[:, 2]))
    inside = inside[np.argsort(points[inside, 2], kind="stable")]  # upwards: of repeated indices numpy keeps the last
    row = np.floor((radius_m - points[inside, 0]) * pixels_per_metre).astype(np.int64)
    column = np.floor((radius_m - points[inside, 1]) * pixels_per_metre).astype(np.int64)

    margin = splat  # takes what squares spill over the edge
    winner = np.full((size + 2 * margin, size + 2 * margin), -1, dtype=np.int64)
    steps = np.arange(splat) - (splat - 1) // 2 + margin
    rows, columns = row[:, None] + steps, column[:, None] + steps
    winner[rows[:, :, None], columns[:, None, :]] = inside[:, None, None]
    winner = winner[margin : margin + size, margin : margin + size]
    picture = background.copy()
    drawn = winner >= 0
    picture[drawn] = colors[winner[drawn]]
    return picture


@lru_cache(maxsize=1)
def color_map() -> Picture:
    """(256, 3) uint8: a colour map from dark blue over green to bright yellow, made of perceived colour (OKLab).

    Lightness rises evenly, so equal steps of the value look equally large, also in grey and to the colour-blind; hue
    turns evenly; chroma is as high as sRGB allows everywhere nearby. Built on first use, read-only.
    """
    position = np.linspace(0.0, 1.0, 256)
    lightness = 0.30 + 0.62 * position
    hue = np.radians(290.0 - 185.0 * position)
    low, high = np.zeros(256), np.full(256, 0.2)
    for _ in range(24):  # bisection: the highest chroma whose colour sRGB can show
        middle = (low + high) / 2
        linear = _oklab_to_linear(lightness, middle, hue)
        shown = ((linear >= 0) & (linear <= 1)).all(axis=1)
        low, high = np.where(shown, middle, low), np.where(shown, high, middle)
    reach = 24  # without this the corners of the sRGB gamut would show as stripes
    lowest = np.lib.stride_tricks.sliding_window_view(np.pad(low, 2 * reach, mode="edge"), 2 * reach + 1).min(axis=1)
    chroma = np.convolve(lowest, np.full(2 * reach + 1, 1 / (2 * reach + 1)), mode="valid")
    linear = np.clip(_oklab_to_linear(lightness, chroma, hue), 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    table = np.rint(encoded * 255).astype(np.uint8)
    table.setflags(write=False)
    return table


def _oklab_to_linear(lightness: Any, chroma: Any, hue: Any) -> npt.NDArray[np.float64]:
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    return np.asarray((lab @ _OKLAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T)


def png_bytes(picture: Picture) -> bytes:
    """A picture as a PNG file, without any imaging library."""
    height, width, _ = picture.shape
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = picture.reshape(height, 3 * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body)) for tag, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
