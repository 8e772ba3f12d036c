# SPDX-License-Identifier: Apache-2.0
"""The picture of a scan: range image, label image, errors, bird's-eye view and legend. Drawn with Pillow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.viewing import pictures
from sqsegv3_ros.viewing.pictures import BACKGROUND, Layer, Picture

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    from sqsegv3_ros.inference.range_image import ProjectionConfig

PAPER, INK, FAINT = (28, 31, 37), (232, 234, 238), (150, 155, 165)
WIDTH, STRIP_HEIGHT, MARGIN, CAPTION = 2048, 256, 24, 40
RADIUS_M, RING_M = 50, 10
HEIGHT_COLORS_M = (-3.0, 3.0)


def draw_scan(
    title: str,
    points: npt.NDArray[np.float32],
    label_set: LabelSet,
    labels: npt.NDArray[Any] | None = None,
    truth: npt.NDArray[Any] | None = None,
    projection: ProjectionConfig | None = None,
) -> Image.Image:
    """Draw a scan.

    Args:
        title: Text above the picture.
        points: (N, 4) float32 x, y, z in metres in the sensor frame, remission.
        label_set: Classes of the labels.
        labels: (N,) labels to show; None to colour by range and height.
        truth: (N,) true labels to compare them with.
        projection: Projection of the images; 64 x 2048, +3 to -25 degrees, if None.

    Returns:
        A picture 2048 pixels wide.

    Raises:
        UserError: Pillow is not installed.
    """
    pictures.require_pillow()
    import torch
    from PIL import Image, ImageDraw

    from sqsegv3_ros.inference.range_image import ProjectionConfig, project

    image = project(torch.from_numpy(points), projection or ProjectionConfig())
    layers = pictures.label_layers(label_set, labels, truth)
    strips = [Layer("range", pictures.range_picture(image.range.cpu().numpy()))]
    strips += [Layer(layer.caption, pictures.image_of_points(layer.colors, image.index.numpy())) for layer in layers]
    low, high = HEIGHT_COLORS_M
    by_height = Layer(f"height, {low:g} m (dark) to {high:g} m (bright)", _height_colors(points[:, 2]))
    panels = [layers[0], *layers[2:]] if layers else [by_height]
    edge = 1200 if len(panels) == 1 else 824

    strips_top = MARGIN + CAPTION
    panels_top = strips_top + len(strips) * (CAPTION + STRIP_HEIGHT)
    canvas = Image.new("RGB", (WIDTH, panels_top + CAPTION + edge + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    title = f"{title}   {len(points):,} points"
    length = draw.textlength(title, font=_font(24))
    size = min(24, int(24 * (WIDTH - 2 * MARGIN) / length))  # shrink long paths instead of cutting them off
    draw.text((MARGIN, MARGIN), title, fill=INK, font=_font(max(size, 8)))
    _draw_strips(canvas, strips, strips_top)
    for number, panel in enumerate(panels):
        left = MARGIN + number * (edge + MARGIN)
        caption = f"{panel.caption}; from above, forward is up, rings every {RING_M} m"
        draw.text((left, panels_top + 12), caption, fill=FAINT, font=_font(18))
        canvas.paste(_birds_eye_panel(points, panel.colors, edge), (left, panels_top + CAPTION))
    if labels is not None:
        corner = (MARGIN + len(panels) * (edge + MARGIN), panels_top + CAPTION)
        _draw_shares(draw, corner, label_set, labels, truth)
    return canvas


def _height_colors(z: npt.NDArray[Any]) -> Picture:
    """Colour (N,) heights in metres above the sensor: dark below `HEIGHT_COLORS_M`, bright above."""
    low, high = HEIGHT_COLORS_M
    return pictures.ramp_colors((np.clip(np.nan_to_num(z), low, high) - low) / (high - low))


def _draw_strips(canvas: Image.Image, strips: list[Layer], top: int) -> None:
    """Draw every image over the whole width below its caption; the first is the range image, with its scale."""
    from PIL import Image, ImageDraw

    draw = ImageDraw.Draw(canvas)
    scale = Image.fromarray(np.repeat(pictures.COLOR_MAP[None, ::-1], 16, axis=0))
    canvas.paste(scale, (170, top + 15))
    draw.text((158, top + 12), f"{pictures.NEAREST_M:g} m", fill=FAINT, font=_font(18), anchor="ra")
    draw.text((438, top + 12), f"{pictures.FARTHEST_M:g} m", fill=FAINT, font=_font(18))
    for strip in strips:
        draw.text((MARGIN, top + 12), strip.caption, fill=FAINT, font=_font(18))
        picture = Image.fromarray(strip.colors).resize((WIDTH, STRIP_HEIGHT), Image.Resampling.NEAREST)
        canvas.paste(picture, (0, top + CAPTION))
        top += CAPTION + STRIP_HEIGHT


def _birds_eye_panel(points: npt.NDArray[np.float32], colors: Picture, edge: int) -> Image.Image:
    """Draw the points over rings of equal range; a triangle marks the sensor and points forward."""
    from PIL import Image, ImageDraw

    grid = Image.new("RGB", (edge, edge), BACKGROUND)
    draw = ImageDraw.Draw(grid)
    centre = edge / 2
    radii = {metres: metres / RADIUS_M * centre for metres in range(RING_M, RADIUS_M + 1, RING_M)}
    for radius in radii.values():
        draw.ellipse((centre - radius, centre - radius, centre + radius, centre + radius), outline=(58, 62, 70))
    panel = Image.fromarray(pictures.birds_eye_picture(points, colors, RADIUS_M, np.asarray(grid)))
    draw = ImageDraw.Draw(panel)
    draw.polygon([(centre, centre - 12), (centre - 7, centre + 8), (centre + 7, centre + 8)], fill=INK)
    for metres, radius in radii.items():
        label_at = (centre + radius * np.sqrt(0.5), centre - radius * np.sqrt(0.5))  # front right, on its ring
        draw.text(
            label_at, f"{metres} m", fill=FAINT, font=_font(14), anchor="lb", stroke_width=2, stroke_fill=BACKGROUND
        )
    return panel


def _draw_shares(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    label_set: LabelSet,
    labels: npt.NDArray[Any],
    truth: npt.NDArray[Any] | None,
) -> None:
    """Draw the legend: the share of every class and, if there are true labels, of every kind of error."""
    left, top = corner
    colors = pictures.display_colors(label_set)
    counts = np.bincount(labels, minlength=len(label_set))
    for label in np.argsort(-counts, kind="stable"):
        if not counts[label]:
            break
        share = counts[label] / len(labels)
        _draw_entry(draw, (left, top), tuple(colors[label].tolist()), label_set.names[label], share)
        top += 30
    if truth is None:
        return
    top += 30
    kinds = pictures.error_kinds(label_set, labels, truth)
    for kind, (key, color) in enumerate(pictures.ERROR_COLORS.items()):
        share = np.count_nonzero(kinds == kind) / max(len(labels), 1)
        _draw_entry(draw, (left, top), color, pictures.ERROR_NAMES[key], share)
        top += 30


def draw_legend(label_set: LabelSet) -> Image.Image:
    """Draw the colour and the id of every class, to show beside RViz.

    Raises:
        UserError: Pillow is not installed.
    """
    pictures.require_pillow()
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (MARGIN + 320, 2 * MARGIN + 30 * len(label_set) - 10), PAPER)
    draw = ImageDraw.Draw(image)
    for label, color in enumerate(label_set.colors.tolist()):
        _draw_entry(draw, (MARGIN, MARGIN + 30 * label), tuple(color), label_set.names[label], str(label))
    return image


def _draw_entry(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], color: tuple[int, ...], name: str, value: float | str
) -> None:
    left, top = corner
    text = value if isinstance(value, str) else "< 0.1 %" if 0 < value < 0.0005 else f"{100 * value:.1f} %"
    draw.rectangle((left, top, left + 20, top + 20), fill=color)
    draw.text((left + 32, top), name, fill=INK, font=_font(18))
    draw.text((left + 290, top), text, fill=FAINT, font=_font(18), anchor="ra")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)
