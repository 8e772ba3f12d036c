"""(N, H, W, C) features -> (N, H, W, C') features: a 3x3 convolution with 4 multiplications an output instead of 9.

Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016):
every 2x2 outputs come from 4x4 inputs as Y = A' [(G g G') * (B' d B)] A, whose products over all tiles and channels are
16 matrix multiplications. The same function up to rounding, which is no worse than that of the direct convolution. The
transforms only pay for many channels, and on a CPU, for which torch's libraries have no such convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sqsegv3_ros.network.tiles import take_tile

BAND_PIXELS = 1024


def pays(in_channels: int, out_channels: int) -> bool:
    """Whether it is faster than the direct convolution: 1.1 times from 64 -> 128 channels on, 1.5 times at 256."""
    return min(in_channels, out_channels) >= 64 and max(in_channels, out_channels) >= 128


def scratch_values(
    rows: int, width: int, channels: int, out_channels: int, add: bool, band_pixels: int = BAND_PIXELS
) -> int:
    """How many values `winograd3x3` needs in between for so many rows of an image."""
    return sum(_scratch_sizes(min(rows, _band(width, band_pixels)), width, channels, out_channels, add))


def transform_weights(weight: Tensor, kernels: Tensor) -> None:
    """G g G' of every kernel of (C', C, 3, 3), channels last in memory, is written into kernels (C', 16, C)."""
    g = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])
    torch.matmul(torch.kron(g, g), weight.permute(0, 2, 3, 1).flatten(1, 2), out=kernels)


def winograd3x3(
    feature: Tensor,
    kernels: Tensor,
    bias: Tensor,
    circular: bool,
    out: Tensor,
    slope: float,
    add: bool,
    top: int,
    bottom: int,
    scratch: Tensor,
    band_pixels: int = BAND_PIXELS,
) -> None:
    """Convolve on the CPU, in float32. Beyond the image lies zero or, to its left and right, the other edge (circular).

    feature: (N, H, W, C), contiguous; H and W even. kernels: (C', 16, C), see `transform_weights`. bias: (C',).
    out: (N, H, W, C'), contiguous, not `feature` itself. slope: of the activation for negative values (0: ReLU,
        1: none).
    add: the result is added to what `out` holds. top, bottom: only these rows of the result are computed, both even.
    scratch: `scratch_values` for these rows, flat. band_pixels: outputs that are computed together, so few that what
        lies between the transforms stays in the cache.
    """
    batch, width, channels = feature.size(0), feature.size(2), feature.size(3)
    out_channels = kernels.size(0)
    kernels = kernels.permute(1, 2, 0)  # (16, C, C')
    band = min(bottom - top, _band(width, band_pixels))
    sizes = _scratch_sizes(band, width, channels, out_channels, add)
    pixels, rows, spectrum, products, halves, addend = scratch[: sum(sizes)].split(sizes)
    pixels = pixels.view(band + 2, width + 2, channels)
    for n in range(batch):
        for row in range(top, bottom, band):
            count = min(band, bottom - row) // 2
            image = pixels[: 2 * count + 2]
            take_tile(feature[n], row - 1, -1, circular, image)
            v = _transform(image, count, rows, spectrum)
            m = products[: 16 * v.size(1) * out_channels].view(16, v.size(1), out_channels)
            torch.bmm(v, kernels, out=m)
            m[5].add_(bias)  # the transform back adds this product to all four outputs, unchanged
            target = out[n, row : row + 2 * count]
            result = addend[: target.numel()].view(target.size()) if add else target
            _transform_back(m, halves, result)
            activate(result, slope)
            if add:
                target.add_(result)


def activate(feature: Tensor, slope: float) -> Tensor:
    """Leaky ReLU in place. slope: of the negative part; 0: ReLU, 1: nothing to do."""
    if slope == 0.0:
        return feature.relu_()
    if slope != 1.0:
        return F.leaky_relu_(feature, slope)
    return feature


def _transform(image: Tensor, count: int, rows: Tensor, spectrum: Tensor) -> Tensor:
    """B' d B of every 4x4 tile: (2 count + 2, W + 2, C) -> (16, count * W / 2, C), in the scratch tensors given."""
    columns, channels = image.size(1) // 2, image.size(2)
    d = image.view(count + 1, 2, 2 * columns * channels)
    d0, d1, d2, d3 = d[:-1, 0], d[:-1, 1], d[1:, 0], d[1:, 1]
    r = rows[: 4 * count * d.size(2)].view(4, count, d.size(2))
    torch.sub(d0, d2, out=r[0])
    torch.add(d1, d2, out=r[1])
    torch.sub(d2, d1, out=r[2])
    torch.sub(d1, d3, out=r[3])
    e = r.view(4, count, columns, 2, channels)
    e0, e1, e2, e3 = e[:, :, :-1, 0], e[:, :, :-1, 1], e[:, :, 1:, 0], e[:, :, 1:, 1]
    v = spectrum[: 16 * count * (columns - 1) * channels].view(4, 4, count, columns - 1, channels)
    torch.sub(e0, e2, out=v[:, 0])
    torch.add(e1, e2, out=v[:, 1])
    torch.sub(e2, e1, out=v[:, 2])
    torch.sub(e1, e3, out=v[:, 3])
    return v.view(16, count * (columns - 1), channels)


def _transform_back(m: Tensor, halves: Tensor, out: Tensor) -> None:
    """A' m A of every tile: (16, H / 2 * W / 2, C') -> out (H, W, C')."""
    rows, columns, channels = out.size(0) // 2, out.size(1) // 2, out.size(2)
    m4 = m.view(4, 4 * m.size(1) * channels)
    h = halves[: 2 * m4.size(1)].view(2, m4.size(1))
    torch.add(m4[1], m4[2], out=h[0]).add_(m4[0])
    torch.sub(m4[1], m4[2], out=h[1]).sub_(m4[3])
    s = h.view(2, 4, rows, columns, channels)
    y = out.view(rows, 2, columns, 2, channels).permute(1, 3, 0, 2, 4)
    torch.add(s[:, 1], s[:, 2], out=y[:, 0]).add_(s[:, 0])
    torch.sub(s[:, 1], s[:, 2], out=y[:, 1]).sub_(s[:, 3])


def _band(width: int, band_pixels: int) -> int:
    return 2 * max(1, band_pixels // (2 * width))


def _scratch_sizes(band: int, width: int, channels: int, out_channels: int, add: bool) -> list[int]:
    """Pixels with their edges, rows transformed, tiles transformed, products, rows transformed back, outputs to add."""
    tiles = (band // 2) * (width // 2)
    return [
        (band + 2) * (width + 2) * channels,
        2 * band * (width + 2) * channels,
        16 * tiles * channels,
        16 * tiles * out_channels,
        8 * tiles * out_channels,
        4 * tiles * out_channels if add else 0,
    ]
