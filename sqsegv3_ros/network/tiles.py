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


def take_tile(image: Tensor, top: int, left: int, reach: int, circular: bool, tile: Tensor) -> None:
    """Fill a tile (rows + 2 reach, cols + 2 reach, C) with the pixels from (top, left) on and `reach` around them.

    Above and below the image lies zero, beside it zero or, where circular, the other edge.
    """
    height, width = image.size(0), image.size(1)
    first_row, last_row = max(top - reach, 0), min(top - reach + tile.size(0), height)
    first_column, last_column = max(left - reach, 0), min(left - reach + tile.size(1), width)
    above, beside = first_row - (top - reach), first_column - (left - reach)
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


def windows(tile: Tensor, kernel: int) -> Tensor:
    """What each pixel of a tile (rows + k - 1, cols + k - 1, C), contiguous, sees: a view (rows, cols, k, k C)."""
    rows, cols, channels = tile.size(0) - kernel + 1, tile.size(1) - kernel + 1, tile.size(2)
    return tile.as_strided([rows, cols, kernel, kernel * channels], [tile.stride(0), channels, tile.stride(0), 1])


def take_columns(tile: Tensor, columns: Tensor) -> None:
    """Fill all but the last of columns (rows, cols, 3 k k + 1) with the windows of coordinates, as ky, kx, xyz."""
    rows, cols, last = columns.size(0), columns.size(1), columns.size(2) - 1
    kernel = int(math.sqrt(last // 3))
    columns[:, :, :last].view(rows, cols, kernel, 3 * kernel).copy_(windows(tile, kernel))


def new_image(like: Tensor, shape: list[int]) -> Tensor:
    """An uninitialised tensor of the device and type of `like`, made so that freeing it gives its memory back.

    glibc fragments its heap with pieces of up to 32 MB. Larger ones come from the system and return there; what is
    reserved but never touched costs nothing. A 64 x 2048 image of the 21 thus needs 100 MB less at its peak.
    """
    size = 1
    for length in shape:
        size *= length
    reserved = size
    if like.device.type == "cpu" and size * like.element_size() > 4_000_000:
        reserved = max(size, 34_000_000 // like.element_size())
    return like.new_empty([reserved])[:size].view(shape)
