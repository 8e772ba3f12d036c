"""The arithmetic of the projection: points -> their pixels, and pixels -> the values of the points that keep them.

Written so that it runs as Python, on any device, and as TorchScript, in which threads share the points of a CPU without
waiting for each other at Python's lock between these many short operations.
"""

# No `from __future__ import annotations` here: TorchScript needs the annotations of the classes as types.
import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sqsegv3_ros.parallel import as_written, thread_count


class View(NamedTuple):
    """How the sensor's surroundings become an image.

    down, fov: radians, from the lower edge of the image to the horizon and to the upper edge. lowest, highest: radians,
    the elevations beyond which points are dropped; infinite where none is. farthest_wins: of the points in a pixel.
    first_unseen: whether the pixel of point 0 is masked, as the release does. on_cpu: whether values may be asked for;
    a GPU would make the host wait.
    """

    height: int
    width: int
    down: float
    fov: float
    lowest: float
    highest: float
    farthest_wins: bool
    first_unseen: bool
    on_cpu: bool


class Points(NamedTuple):
    """What is known of N points. All but `points`, `given_row` and `known` is written to.

    points: (N, 4) float32. columns: (5, N + 1) range, x, y, z, remission; the first column is what empty pixels hold.
    bits: (N,) int32, the ranges' bits. key: (N,) int64: of the points in a pixel, the one with the smallest key keeps
    it. lower, upper: (N,) int32, the keys' halves. pixel: (N,) int64. usable: (N,) bool. scratch: (3, N) float32.
    given_row: (N,) float32 rows, where they do not follow from elevation; known: (N,) bool, which of them are right.
    """

    points: Tensor
    columns: Tensor
    bits: Tensor
    key: Tensor
    lower: Tensor
    upper: Tensor
    pixel: Tensor
    usable: Tensor
    scratch: Tensor
    given_row: Tensor | None
    known: Tensor | None


class Image(NamedTuple):
    """What is known of an image of P pixels. All but `means` and `stds` is written to.

    best: (P,) int64, the smallest key. lower: (P,) int32, its lower half. point: (P,) int64, -1 where there is none.
    mask: (P,) bool. channels: (5, P) float32. normal: (5, P) float32, (channels - means) / stds, 0 in masked pixels;
    None where nobody asks for it. means, stds: (5,) float32.
    """

    best: Tensor
    lower: Tensor
    point: Tensor
    mask: Tensor
    channels: Tensor
    normal: Tensor | None
    means: Tensor
    stds: Tensor


def fill_in(points: Points, image: Image, view: View) -> None:
    """Everything that follows from `points.points`."""
    aiming, taking = (_stripes(length, view) for length in (len(points.pixel), len(image.best) // 2))
    if max(aiming, taking) > 1:
        with as_written():
            _script(_fill_in)(points, image, view, aiming, taking)
    else:
        _fill_in(points, image, view, 1, 1)


def no_point(count: int) -> int:
    """The key of pixels without one of `count` points, and of points that cannot be used: larger than all others."""
    return (0x7FFFFFFF << 32) | count


def aim(points: Points, view: View, begin: int, end: int) -> Tensor:
    """Points [begin, end); returns their pixels."""
    # a point is read whole while it is in the innermost cache; on a GPU that does not matter
    together = 4096 if view.on_cpu else max(1, end - begin)
    for first in range(begin, end, together):
        last = min(first + together, end)
        points.columns[1:, 1 + first : 1 + last].copy_(points.points[first:last].t())
    point_range, x, y, z, remission = points.columns[:, 1 + begin : 1 + end].unbind(0)
    row, column, scratch = points.scratch[:, begin:end].unbind(0)
    usable = points.usable[begin:end]

    torch.mul(x, x, out=point_range)
    point_range.add_(torch.mul(y, y, out=scratch)).add_(torch.mul(z, z, out=scratch))
    point_range.copy_(point_range.double().sqrt_())  # correctly rounded, as numpy does and torch's float32 does not
    remission.nan_to_num_(0.0, 0.0, 0.0)
    # comparisons into float32 take a third of the time of those into bool
    torch.gt(point_range, 0.0, out=scratch)
    usable.copy_(scratch.mul_(torch.le(point_range, 3.4028234663852886e38, out=row)))

    given_row, known = points.given_row, points.known
    # squares of less than 1e-19 m lose digits, so that a range may come out shorter than its z
    elevation = torch.div(z, point_range, out=row).clamp_(-1, 1).asin_()
    if view.lowest > -math.inf:
        usable.logical_and_(elevation <= view.highest).logical_and_(elevation >= view.lowest)
    if given_row is not None and known is not None:
        row.copy_(given_row[begin:end])
        usable.logical_and_(known[begin:end])
    else:
        # in the release's order of operations, so that rounding is the same
        row.add_(view.down).div_(-view.fov).add_(1.0).mul_(view.height).floor_().clamp_(0, view.height - 1)

    position = _position(torch.atan2(y, x, out=scratch), view.width)
    torch.floor(position, out=column)
    if view.on_cpu:
        # The release rounds as the C library does, torch's quick arctangent in the last bit otherwise. That matters for
        # the few points at a column's edge; for those that lie apart in memory torch calls the C library too.
        distance = position.sub_(column).sub_(0.5).abs_()
        edge = torch.nonzero(torch.gt(distance, 0.5 - 1e-6 * view.width, out=scratch)).flatten()
        apart = torch.stack([y[edge], x[edge]], 1)
        column.index_copy_(0, edge, _position(torch.atan2(apart[:, 0], apart[:, 1]), view.width).floor_())
    column.clamp_(0, view.width - 1)
    # float32 holds every pixel's number: there are at most 1024 x 16384 = 2**24
    row.mul_(view.width).add_(column)

    # A positive float orders like its bits: range and index in one integer make the minimum exact, free of the
    # order of writing and equal on every device. The later of equally near points wins, as in the release.
    later, bits = len(points.pixel) - begin, points.bits[begin:end]
    lower, upper = points.lower[begin:end], points.upper[begin:end]
    lower.copy_(torch.arange(later - 1, later - 1 - len(lower), -1, dtype=torch.int32, device=lower.device))
    upper.copy_(0x7F800000 - bits if view.farthest_wins else bits)
    if not view.on_cpu or not bool(usable.all()):
        unusable = usable.logical_not()
        row.masked_fill_(unusable, 0)
        lower.masked_fill_(unusable, len(points.pixel))
        upper.masked_fill_(unusable, 0x7FFFFFFF)
    pixel = points.pixel[begin:end]
    return pixel.copy_(row)


def take(image: Image, columns: Tensor, first_unseen: bool, begin: int, end: int) -> Tensor:
    """Pixels [begin, end); returns their channels."""
    winner = columns.size(1) - 1 - image.lower[begin:end]  # of the columns
    image.point[begin:end].copy_(winner).sub_(1)
    seen = torch.gt(winner, 1 if first_unseen else 0, out=torch.empty(winner.shape, device=columns.device))
    image.mask[begin:end].copy_(seen)
    channels, normal = image.channels[:, begin:end], image.normal
    for i in range(5):
        torch.index_select(columns[i], 0, winner, out=channels[i])
        if normal is not None:
            torch.sub(channels[i], image.means[i], out=normal[i, begin:end]).div_(image.stds[i]).mul_(seen)
    return channels


def _position(azimuth: Tensor, width: int) -> Tensor:
    """In place, columns of an image from its left edge on."""
    return azimuth.div_(-math.pi).add_(1.0).mul_(0.5 * width)  # a factor of 0.5 does not round


def _fill_in(points: Points, image: Image, view: View, aiming: int, taking: int) -> None:
    count, pixels = points.pixel.size(0), image.best.size(0)
    tasks: list[torch.jit.Future[Tensor]] = []
    for i in range(1, aiming):
        tasks.append(torch.jit.fork(aim, points, view, _bound(count, i, aiming), _bound(count, i + 1, aiming)))
    image.best.fill_(no_point(count))
    aim(points, view, 0, _bound(count, 1, aiming))
    for task in tasks:
        torch.jit.wait(task)

    image.best.scatter_reduce_(0, points.pixel, points.key, "amin")

    columns, unseen = points.columns, view.first_unseen
    tasks.clear()
    for i in range(1, taking):
        tasks.append(
            torch.jit.fork(take, image, columns, unseen, _bound(pixels, i, taking), _bound(pixels, i + 1, taking))
        )
    take(image, columns, unseen, 0, _bound(pixels, 1, taking))
    for task in tasks:
        torch.jit.wait(task)


def _bound(length: int, i: int, stripes: int) -> int:
    """Where stripe i begins. The first one is larger: its thread need not be woken."""
    return length * (5 * i + 1) // (5 * stripes + 1) if i else 0


def _stripes(length: int, view: View) -> int:
    return max(1, min(thread_count(), length // 30_000)) if view.on_cpu else 1  # fewer are not worth a thread


@lru_cache
def _script(function: Any) -> Any:
    return torch.jit.script(function)
