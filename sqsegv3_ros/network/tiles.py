"""(H, W, C) images -> pieces of them with what lies around: so the deploy form needs no copies of whole images."""

from __future__ import annotations

import math

from torch import Tensor


def tile_shape(height: int, width: int, tile_pixels: int) -> tuple[int, int]:
    """Rows and columns of the tiles that an image is computed in: whole rows, or pieces of one where they are long.

    tile_pixels: at most so many, but at least one; 0: the whole image is one tile.
    """
    if tile_pixels <= 0:
        return height, width
    if tile_pixels >= width:
        return min(height, tile_pixels // width), width
    pieces = (width + tile_pixels - 1) // tile_pixels
    return 1, (width + pieces - 1) // pieces


def stripe_bounds(height: int, stripes: int) -> list[tuple[int, int]]:
    """First and last row + 1 of at most so many stripes of an image, alike in height; even where the height is."""
    unit = 2 if height % 2 == 0 else 1
    units = height // unit
    stripes = max(1, min(stripes, units))
    return [(unit * (units * i // stripes), unit * (units * (i + 1) // stripes)) for i in range(stripes)]


def take_tile(image: Tensor, top: int, left: int, circular: bool, tile: Tensor) -> None:
    """Fill a tile (rows, cols, C) with the pixels from (top, left) on, which may lie outside the image (H, W, C).

    Above and below the image lies zero, beside it zero or, where circular, the other edge.
    """
    height, width = image.size(0), image.size(1)
    first_row, last_row = max(top, 0), min(top + tile.size(0), height)
    first_column, last_column = max(left, 0), min(left + tile.size(1), width)
    above, beside = first_row - top, first_column - left
    below = tile.size(0) - above - (last_row - first_row)
    beyond = tile.size(1) - beside - (last_column - first_column)
    rows = image[first_row:last_row]
    inside = tile[above : tile.size(0) - below]
    inside[:, beside : tile.size(1) - beyond].copy_(rows[:, first_column:last_column])
    if above > 0:
        tile[:above].zero_()
    if below > 0:
        tile[tile.size(0) - below :].zero_()
    if beside > 0:
        edge = inside[:, :beside]
        if circular:
            edge.copy_(rows[:, width - beside :])
        else:
            edge.zero_()
    if beyond > 0:
        edge = inside[:, tile.size(1) - beyond :]
        if circular:
            edge.copy_(rows[:, :beyond])
        else:
            edge.zero_()


def windows(tile: Tensor, kernel_rows: int, kernel_columns: int, step: int = 1) -> Tensor:
    """What the pixels of a contiguous tile (rows + ky - 1, columns, C) see: a view (rows, cols, ky, kx C).

    step: columns from one of these pixels to the next.
    """
    rows, cols = tile.size(0) - kernel_rows + 1, (tile.size(1) - kernel_columns) // step + 1
    line, channels = tile.stride(0), tile.size(2)
    return tile.as_strided([rows, cols, kernel_rows, kernel_columns * channels], [line, step * channels, line, 1])


def take_columns(tile: Tensor, columns: Tensor) -> None:
    """Fill all but the last of columns (rows, cols, 3 k k + 1) with the windows of coordinates, as ky, kx, xyz."""
    rows, cols, last = columns.size(0), columns.size(1), columns.size(2) - 1
    kernel = int(math.sqrt(last // 3))
    columns[:, :, :last].view(rows, cols, kernel, 3 * kernel).copy_(windows(tile, kernel, kernel))
