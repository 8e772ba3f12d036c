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

from sqsegv3_ros.network.tiles import new_image, take_tile


def pays(in_channels: int, out_channels: int) -> bool:
    """Whether it is faster than the direct convolution: 1.1 times from 64 -> 128 channels on, 1.5 times at 256."""
    return min(in_channels, out_channels) >= 64 and max(in_channels, out_channels) >= 128


def winograd3x3(
    feature: Tensor,
    weight: Tensor,
    bias: Tensor,
    circular: bool,
    out: Tensor,
    slope: float = 1.0,
    add: bool = False,
    top: int = 0,
    bottom: int = -1,
    band_pixels: int = 1024,
) -> None:
    """Convolve on the CPU, in float32. Beyond the image lies zero or, to its left and right, the other edge (circular).

    feature: (N, H, W, C), contiguous; H and W even. weight: (C', C, 3, 3), channels last in memory. bias: (C',).
    out: (N, H, W, C'), contiguous, not `feature` itself. slope: of the activation for negative values (0: ReLU,
        1: none).
    add: the result is added to what `out` holds. top, bottom: only these rows of the result are computed, both even;
        bottom -1: to the last. band_pixels: outputs that are computed together, so few that what lies between the
        transforms stays in the cache.
    """
    batch, height, width, channels = feature.size()
    bottom = height if bottom < 0 else bottom
    out_channels = weight.size(0)
    g = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])
    kernels = new_image(feature, [out_channels, 16, channels])
    torch.matmul(torch.kron(g, g), weight.permute(0, 2, 3, 1).reshape(out_channels, 9, channels), out=kernels)
    kernels = kernels.permute(1, 2, 0)  # (16, C, C')
    band = min(bottom - top, 2 * max(1, band_pixels // (2 * width)))
    tiles = (band // 2) * (width // 2)
    # what the bands share, in one piece of memory: pixels with their edges, rows transformed, tiles transformed,
    # products, rows transformed back, outputs that are yet to be added
    sizes = [
        (band + 2) * (width + 2) * channels,
        2 * band * (width + 2) * channels,
        16 * tiles * channels,
        16 * tiles * out_channels,
        8 * tiles * out_channels,
        4 * tiles * out_channels if add else 0,
    ]
    pixels, rows, spectrum, products, halves, addend = new_image(feature, [sum(sizes)]).split(sizes)
    pixels = pixels.view(band + 2, width + 2, channels)
    for n in range(batch):
        for row in range(top, bottom, band):
            count = min(band, bottom - row) // 2
            image = pixels[: 2 * count + 2]
            take_tile(feature[n], row, 0, 1, circular, image)
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
