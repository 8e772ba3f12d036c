# SPDX-License-Identifier: Apache-2.0
"""The blocks that the paper compares: against a slow, literal evaluation of its equations in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sqsegv3_ros.network.blocks import make_block
from sqsegv3_ros.network.config import BLOCKS, NetworkConfig
from sqsegv3_ros.network.model import SqueezeSegV3
from sqsegv3_ros.network.sac import unfold3x3
from sqsegv3_ros.training.crop import set_azimuth_padding

CHANNELS, HEIGHT, WIDTH = 5, 4, 9
PADDINGS = ("zero", "circular")


def block_of(kind, padding, kernel=7, channels=CHANNELS, seed=0):
    """A block in float64 and eval mode whose weights and BatchNorm statistics are all random."""
    torch.manual_seed(seed)
    config = NetworkConfig(block=kind, azimuth_padding=padding, attention_kernel=kernel)
    block = make_block(channels, config).double().eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 1)
        if hasattr(module, "scale"):
            nn.init.uniform_(module.scale, 0.5, 2)
    return block


def inputs(channels=CHANNELS):
    generator = np.random.default_rng(1)
    return generator.normal(size=(channels, HEIGHT, WIDTH)), generator.normal(size=(3, HEIGHT, WIDTH))


def pixel(image, p, q, circular):
    """image[:, p, q]; zero beyond the edges, or the other edge beyond left and right."""
    if not 0 <= p < image.shape[1] or not (circular or 0 <= q < image.shape[2]):
        return np.zeros(len(image))
    return image[:, p, q % image.shape[2]]


def convolution(image, layer, circular):
    """Equation 2 without its activation, pixel by pixel."""
    weight, bias = array(layer.weight), array(layer.bias)
    reach = weight.shape[2] // 2
    out = np.zeros((len(weight), *image.shape[1:]))
    for p, q, i, j in itertools.product(*map(range, (*image.shape[1:], *weight.shape[2:]))):
        out[:, p, q] += weight[:, :, i, j] @ pixel(image, p + i - reach, q + j - reach, circular)
    return out + bias[:, None, None]


def adaptive_convolution(image, layer, factors, circular):
    """Equations 3 and 4 without the activation: the weight of every pixel is built, then used.

    factors: A, (I, H, W, 3, 3).
    """
    weight = array(layer.weight).reshape(-1, len(image), 3, 3)
    out = np.zeros((len(weight), *image.shape[1:]))
    for p, q in itertools.product(*map(range, image.shape[1:])):
        adapted = weight * factors[None, :, p, q]
        for i, j in itertools.product(range(3), range(3)):
            out[:, p, q] += adapted[:, :, i, j] @ pixel(image, p + i - 1, q + j - 1, circular)
    return out + array(layer.bias)[:, None, None]


def array(tensor):
    return tensor.detach().numpy()


def batch_norm(image, layer):
    scale = array(layer.weight) / np.sqrt(array(layer.running_var) + layer.eps)
    shift = array(layer.bias) - array(layer.running_mean) * scale
    return image * scale[:, None, None] + shift[:, None, None]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


def reference_block(block, feature, coordinates, factors, circular):
    """The whole block for given factors A, (I, H, W, 3, 3)."""
    mixed = relu(batch_norm(adaptive_convolution(feature, block.mix.conv, factors, circular), block.mix.norm))
    return feature + relu(batch_norm(convolution(mixed, block.conv.conv, circular), block.conv.norm))


def factors_of_read_pixels(factors, circular):
    """Expand A (I, H, W) to (I, H, W, 3, 3): each tap has the factor of the pixel that it reads (section 4.3)."""
    out = np.zeros((*factors.shape, 3, 3))
    for p, q, i, j in itertools.product(range(HEIGHT), range(WIDTH), range(3), range(3)):
        out[:, p, q, i, j] = pixel(factors, p + i - 1, q + j - 1, circular)
    return out


def run_block(block, feature, coordinates):
    with torch.no_grad():
        return block(torch.from_numpy(feature)[None], torch.from_numpy(coordinates)[None])[0].numpy()


def attention(module, coordinates, circular):
    return sigmoid(batch_norm(convolution(coordinates, module.conv, circular), module.norm))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kernel", [1, 7])
@pytest.mark.parametrize("kind", ["conv", "sac-s", "sac-is", "sac-sk", "sac-isk"])
def test_spatially_adaptive_convolution_equals_equations_3_and_4(kind, kernel, padding):
    block, circular = block_of(kind, padding, kernel), padding == "circular"
    feature, coordinates = inputs()
    if kind == "conv":
        factors = np.ones((CHANNELS, HEIGHT, WIDTH, 3, 3))
    elif kind == "sac-isk":
        found = attention(block.attention, coordinates, circular)
        factors = found.reshape(CHANNELS, 3, 3, HEIGHT, WIDTH).transpose(0, 3, 4, 1, 2)
    else:
        found = attention(block.adapt.attention, coordinates, circular)
        assert len(found) == {"sac-s": 1, "sac-is": CHANNELS, "sac-sk": 9}[kind]
        if kind == "sac-sk":
            factors = found.reshape(1, 3, 3, HEIGHT, WIDTH).transpose(0, 3, 4, 1, 2)
        else:
            factors = factors_of_read_pixels(found, circular)
    expected = reference_block(block, feature, coordinates, factors, circular)
    np.testing.assert_allclose(run_block(block, feature, coordinates), expected, rtol=0, atol=1e-12)


def bottleneck(vector, module):
    """W2 relu(W1 v + b1) + b2 of one vector."""
    reduce, expand = module.reduce, module.expand
    hidden = relu(array(reduce.weight)[:, :, 0, 0] @ vector + array(reduce.bias))
    return array(expand.weight)[:, :, 0, 0] @ hidden + array(expand.bias)


@pytest.mark.parametrize("padding", PADDINGS)
def test_squeeze_and_excitation_weights_channels_by_their_means(padding):
    feature, coordinates = inputs(channels=32)
    block = block_of("se", padding, channels=32)
    assert block.adapt.bottleneck.reduce.out_channels == 2
    found = sigmoid(bottleneck(feature.mean((1, 2)), block.adapt.bottleneck))
    factors = np.broadcast_to(found[:, None, None, None, None], (32, HEIGHT, WIDTH, 3, 3))
    expected = reference_block(block, feature, coordinates, factors, padding == "circular")
    np.testing.assert_allclose(run_block(block, feature, coordinates), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", PADDINGS)
def test_block_attention_weights_channels_and_then_pixels(padding):
    feature, coordinates = inputs(channels=32)
    block, circular = block_of("cbam", padding, channels=32), padding == "circular"
    module = block.adapt
    by_channel = sigmoid(
        bottleneck(feature.mean((1, 2)), module.bottleneck) + bottleneck(feature.max((1, 2)), module.bottleneck)
    )
    weighed = feature * by_channel[:, None, None]
    by_pixel = sigmoid(convolution(np.stack([weighed.mean(0), weighed.max(0)]), module.conv, circular))
    factors = factors_of_read_pixels(by_channel[:, None, None] * by_pixel, circular)
    expected = reference_block(block, feature, coordinates, factors, circular)
    np.testing.assert_allclose(run_block(block, feature, coordinates), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", PADDINGS)
def test_context_aggregation_weights_by_the_maximum_of_49_pixels(padding):
    feature, coordinates = inputs(channels=32)
    block, circular = block_of("cam", padding, channels=32, seed=1), padding == "circular"
    found = np.zeros_like(feature)
    for p, q in itertools.product(range(HEIGHT), range(WIDTH)):
        columns = [c for c in range(q - 3, q + 4) if circular or 0 <= c < WIDTH]
        rows = range(max(p - 3, 0), min(p + 4, HEIGHT))
        most = np.max([feature[:, r, c % WIDTH] for r in rows for c in columns], axis=0)
        found[:, p, q] = sigmoid(bottleneck(most, block.adapt.bottleneck))
    assert np.ptp(found, axis=(1, 2)).max() > 1e-2  # else a dead bottleneck would hide what is pooled
    expected = reference_block(block, feature, coordinates, factors_of_read_pixels(found, circular), circular)
    np.testing.assert_allclose(run_block(block, feature, coordinates), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", PADDINGS)
def test_pixel_adaptive_convolution_weights_taps_by_a_gaussian_of_coordinates(padding):
    feature, coordinates = inputs()
    block, circular = block_of("pac", padding), padding == "circular"
    guide = coordinates * array(block.adapt.scale)[:, None, None]
    factors = np.zeros((1, HEIGHT, WIDTH, 3, 3))
    for p, q, i, j in itertools.product(range(HEIGHT), range(WIDTH), range(3), range(3)):
        distance = pixel(guide, p + i - 1, q + j - 1, circular) - guide[:, p, q]
        factors[0, p, q, i, j] = np.exp(-(distance @ distance) / 2)
    expected = reference_block(block, feature, coordinates, factors, circular)
    np.testing.assert_allclose(run_block(block, feature, coordinates), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_block_is_equivariant_to_rotation(kind):
    block = block_of(kind, "circular")
    feature, coordinates = (torch.from_numpy(a)[None] for a in inputs())
    with torch.no_grad():
        still = block(feature, coordinates)
        turned = block(torch.roll(feature, 4, dims=3), torch.roll(coordinates, 4, dims=3))
    torch.testing.assert_close(torch.roll(still, 4, dims=3), turned, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_crop_has_no_circular_padding(kind):
    circular, zero = block_of(kind, "circular"), block_of(kind, "zero")
    assert circular.state_dict().keys() == zero.state_dict().keys()
    set_azimuth_padding(nn.ModuleList([circular]), False)
    feature, coordinates = inputs()
    np.testing.assert_array_equal(run_block(circular, feature, coordinates), run_block(zero, feature, coordinates))


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_gradient_step_lowers_the_loss_and_reaches_the_attention(kind):
    torch.manual_seed(0)
    config = NetworkConfig(block=kind, blocks=(1, 1, 1, 1, 1), dropout=0.0, decoder_dropout=0.0, head_dropout=0.0)
    network = SqueezeSegV3(config.scaled(1 / 8)).train()
    image, labels = torch.randn(2, 5, 4, 32), torch.randint(20, (2, 4, 32))

    def loss():
        return sum(nn.functional.cross_entropy(o, labels[:, :, :: 32 // o.shape[3]]) for o in network(image))

    before = loss()
    before.backward()
    attention = [p for name, p in network.named_parameters() if "adapt" in name or "attention.conv.weight" in name]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert any(p.grad.abs().max() > 0 for p in attention) or kind == "conv"
    with torch.no_grad():
        for p in network.parameters():
            p -= 0.01 * p.grad
        assert loss() < before


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_the_baseline_is_the_released_network_without_attention():
    for config, all_of_it, attention in (
        (NetworkConfig.ssgv3_21(block="conv"), 9_247_140, 1_512_000),
        (NetworkConfig.ssgv3_53(block="conv"), 25_959_588, 5_745_600),
    ):
        with torch.device("meta"):
            assert parameters(SqueezeSegV3(config)) == all_of_it - attention


def test_rangenet_shape_halves_the_width_five_times_up_to_1024_channels():
    config = NetworkConfig.rangenet_21()
    with torch.no_grad():
        network = SqueezeSegV3(config).eval()
        feature, skips = network.encode(torch.zeros(1, 5, 1, 32))
        outputs = network(torch.zeros(1, 5, 1, 32))
    assert tuple(feature.shape) == (1, 1024, 1, 1)
    assert [tuple(s.shape[1::2]) for s in skips] == [(32, 32), (64, 16), (128, 8), (256, 4), (512, 2)]
    assert [tuple(o.shape) for o in outputs] == [(1, 20, 1, w) for w in (32, 16, 8, 4, 2)]
    # by hand: convolutions with bias and BatchNorm in the blocks, without a bias in those that halve the width
    width = (32, 64, 128, 256, 512, 1024)
    expected = 5 * 9 * 32 + 2 * 32 + sum(c * 20 + 20 for c in width[1:5]) + 9 * 32 * 20 + 20
    for blocks, c, after in zip(config.blocks, width, width[1:], strict=False):
        expected += blocks * 2 * (9 * c * c + 3 * c) + 9 * c * after + 2 * after
        expected += 4 * after * c + 3 * c + c * after + 2 * after + 9 * after * c + 2 * c
    assert parameters(network) == expected


def test_rangenet_shape_is_equivariant_to_rotation():
    torch.manual_seed(3)
    config = NetworkConfig.rangenet_21(azimuth_padding="circular", attention_kernel=3, block="sac-isk").scaled(1 / 8)
    network = SqueezeSegV3(config).eval()
    image = torch.randn(1, 5, 4, 96)
    with torch.no_grad():
        still, turned = network(image), network(torch.roll(image, 32, dims=3))
    for columns, a, b in zip((32, 16, 8, 4, 2), still, turned, strict=True):
        torch.testing.assert_close(torch.roll(a, columns, dims=3), b, rtol=0, atol=1e-5)


def test_rangenet_shape_refuses_a_width_that_cannot_be_halved_five_times():
    from sqsegv3_ros.errors import UserError

    network = SqueezeSegV3(NetworkConfig.rangenet_21().scaled(1 / 8))
    with pytest.raises(UserError, match=r"multiple of 32, at least 32, because it is halved 5 times; found 48"):
        network(torch.zeros(1, 5, 4, 48))
    with pytest.raises(UserError, match="halvings must be one of 3, 5, found 4"):
        NetworkConfig(halvings=4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("circular", [False, True])
def test_windows_and_their_gradient_equal_those_of_torch(dtype, circular):
    feature = torch.randn(2, 3, 6, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    feature.requires_grad_()
    windows = unfold3x3(feature, circular)
    exactly = feature.detach().double().requires_grad_()
    around = torch.cat((exactly[..., -1:], exactly, exactly[..., :1]), 3) if circular else exactly
    expected = functional.unfold(around, (3, 3), padding=(1, 0 if circular else 1)).view(2, 27, 6, 16)
    assert torch.equal(windows, expected.to(dtype))
    weights = torch.randn(windows.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (found,) = torch.autograd.grad(windows, feature, weights)
    (exact,) = torch.autograd.grad(expected, exactly, weights.double())
    torch.testing.assert_close(found, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
