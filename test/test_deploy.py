"""The deploy form computes the function of the training form, whatever the tiles, the batch and the shape."""

from __future__ import annotations

import io

import pytest
import torch

from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.deploy import deploy
from sqsegv3_ros.network.folded import FoldedConv, ProductConv, WinogradConv
from sqsegv3_ros.network.model import SqueezeSegV3
from sqsegv3_ros.network.tiles import stripe_bounds, take_tile, tile_shape
from sqsegv3_ros.network.winograd import scratch_values, transform_weights, winograd3x3

MARGIN = 1e-4


SHAPES = [
    NetworkConfig.ssgv3_21(azimuth_padding="circular", attention_kernel=1),  # wide enough for Winograd
    NetworkConfig.ssgv3_21(attention_kernel=3, azimuth_padding="circular").scaled(1 / 8),
    NetworkConfig.ssgv3_21(attention_kernel=3, blocks=(1, 1, 1, 1, 1)).scaled(1 / 8),
]


def lively(config, seed=0):
    """A network whose every layer matters: random affine BatchNorm, statistics of data, a head with an opinion."""
    torch.manual_seed(seed)
    model = SqueezeSegV3(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
    torch.nn.init.normal_(model.heads[0].conv.weight, 0, 0.3)
    with torch.no_grad():
        model.train()
        for _ in range(3):
            model(torch.randn(2, 5, 8, 64))
    return model.eval()


def assert_agree(model, deployed, image):
    with torch.no_grad():
        expected, found = model(image)[0].softmax(1), deployed(image).softmax(1)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5
    top = expected.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > MARGIN
    assert clear.float().mean() > 0.9
    assert (found.argmax(1) == expected.argmax(1))[clear].all()


@pytest.mark.parametrize("config", [NetworkConfig.ssgv3_21(), NetworkConfig.ssgv3_53()], ids=["21", "53"])
def test_full_size_networks_agree_with_their_training_form(config):
    model = lively(config)
    deployed = torch.jit.script(deploy(model))
    assert_agree(model, deployed, torch.randn(1, 5, 16, 64))
    assert_agree(model, deployed, torch.randn(2, 5, 8, 96))


@pytest.mark.parametrize("padding", ["zero", "circular"])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_small_networks_agree_for_every_kernel_padding_and_batch(kernel, padding):
    config = NetworkConfig.ssgv3_21(attention_kernel=kernel, azimuth_padding=padding, num_classes=7).scaled(3 / 16)
    model = lively(config)
    deployed = deploy(model)
    for shape in ((1, 5, 16, 64), (2, 5, 9, 128)):
        assert_agree(model, deployed, torch.randn(shape))


@pytest.mark.parametrize("tile_pixels", [0, 1, 7, 24, 64, 200, 100_000])
def test_tiles_of_any_size_give_the_same(tile_pixels):
    model = lively(NetworkConfig.ssgv3_21(attention_kernel=3, azimuth_padding="circular").scaled(1 / 8))
    deployed = deploy(model)
    deployed.tile_pixels = tile_pixels
    assert_agree(model, deployed, torch.randn(1, 5, 7, 72))


@pytest.mark.parametrize("pieces", [(1, 1), (50, 5), (2000, 200)], ids=["one value", "some", "many"])
@pytest.mark.parametrize("padding", ["zero", "circular"])
@pytest.mark.parametrize("factor", [1 / 2, 1 / 8])
def test_convolutions_piece_by_piece_give_the_same(factor, padding, pieces):
    """As in live images, which are many bands and tiles large."""
    model = lively(NetworkConfig.ssgv3_21(attention_kernel=3, azimuth_padding=padding).scaled(factor))
    deployed = deploy(model)
    deployed.stripes = 2  # not scripted, one after the other
    products = 0
    for layer in deployed.modules():
        if isinstance(layer, FoldedConv):
            layer.band_values = pieces[0]
        if isinstance(layer, ProductConv):
            layer.tile_pixels, layer.tile_scale = pieces[1], 1
            products += 1
    assert products >= 5
    assert_agree(model, deployed, torch.randn(2, 5, 5, 72))


@pytest.mark.parametrize("stripes", [2, 3, 100])
@pytest.mark.parametrize("config", SHAPES, ids=["winograd", "circular", "zero"])
def test_any_number_of_stripes_side_by_side_gives_the_same(config, stripes):
    model = lively(config)
    deployed = torch.jit.script(deploy(model))  # only scripted do they run side by side
    deployed.stripes = stripes
    for height in (6, 7):
        assert_agree(model, deployed, torch.randn(2, 5, height, 72))


@pytest.mark.parametrize("stripes", [1, 2, 3, 64, 1000])
@pytest.mark.parametrize("height", [1, 2, 7, 64])
def test_stripes_cover_the_image_and_are_even_where_it_is(height, stripes):
    bounds = stripe_bounds(height, stripes)
    assert [row for top, bottom in bounds for row in range(top, bottom)] == list(range(height))
    assert 1 <= len(bounds) <= stripes
    assert height % 2 or all(top % 2 == 0 for top, _ in bounds)


def test_tile_size_can_be_changed_after_saving_and_loading():
    model = lively(NetworkConfig.ssgv3_21(attention_kernel=1).scaled(1 / 8))
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(deploy(model)), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    loaded.tile_pixels = 40
    assert loaded.tile_pixels == 40
    assert_agree(model, loaded, torch.randn(1, 5, 8, 64))


def test_tiles_cover_whole_rows_or_even_pieces_of_one():
    assert tile_shape(64, 2048, 0) == (64, 2048)
    assert tile_shape(64, 256, 1024) == (4, 256)
    assert tile_shape(2, 256, 1024) == (2, 256)
    assert tile_shape(64, 2048, 1024) == (1, 1024)
    assert tile_shape(64, 2048, 1500) == (1, 1024)


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("reach", [0, 1, 3])
def test_every_tile_is_a_crop_of_the_padded_image(reach, circular):
    image = torch.randn(6, 7, 2)
    padded = torch.nn.functional.pad(
        image.permute(2, 0, 1)[None], (reach, reach, 0, 0), mode="circular" if circular else "constant"
    )
    padded = torch.nn.functional.pad(padded, (0, 0, reach, reach))[0].permute(1, 2, 0)
    for top, left, rows, cols in ((0, 0, 6, 7), (0, 0, 2, 3), (2, 3, 1, 4), (5, 0, 1, 7), (4, 6, 2, 1)):
        tile = torch.full((rows + 2 * reach, cols + 2 * reach, 2), float("nan"))
        take_tile(image, top - reach, left - reach, circular, tile)
        assert torch.equal(tile, padded[top : top + rows + 2 * reach, left : left + cols + 2 * reach])


def test_deploying_leaves_the_model_as_it_was():
    model = lively(NetworkConfig.ssgv3_21(attention_kernel=1).scaled(1 / 8)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    deployed = deploy(model)
    deployed(torch.randn(1, 5, 8, 64))
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_input_image_is_not_written_to():
    deployed = deploy(lively(NetworkConfig.ssgv3_21(attention_kernel=1).scaled(1 / 8)))
    image = torch.randn(1, 5, 8, 64)
    before = image.clone()
    deployed(image)
    assert torch.equal(image, before)


def test_only_the_last_heads_weights_are_carried():
    config = NetworkConfig.ssgv3_21()
    model = SqueezeSegV3(config)
    whole = sum(p.numel() for p in model.parameters())
    heads = sum(p.numel() for head in list(model.heads)[1:] for p in head.parameters())
    deployed = sum(b.numel() for b in deploy(model).buffers())
    # BatchNorm is gone and the transposed convolutions have two taps of zeros in six
    upsampling = sum(stage.conv.conv.weight.numel() for stage in list(model.decoder)[2:])
    assert deployed < whole - heads + upsampling


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_the_full_one(dtype):
    model = lively(NetworkConfig.ssgv3_21(attention_kernel=3).scaled(1 / 8))
    deployed = torch.jit.script(deploy(model).to(dtype))
    image = torch.randn(1, 5, 8, 64)
    with torch.no_grad():
        expected, found = model(image)[0].softmax(1), deployed(image.to(dtype))
    assert found.dtype == dtype
    assert (found.float().softmax(1) - expected).abs().mean() < (2e-3 if dtype == torch.float16 else 1e-2)


def winograd(feature, weight, bias, circular, out, slope, add, top, bottom, band_pixels):
    kernels = torch.empty(weight.shape[0], 16, weight.shape[1])
    transform_weights(weight, kernels)
    size = scratch_values(bottom - top, feature.shape[2], feature.shape[3], weight.shape[0], add, band_pixels)
    scratch = torch.full((size,), float("nan"))
    winograd3x3(feature, kernels, bias, circular, out, slope, add, top, bottom, scratch, band_pixels)


@pytest.mark.parametrize("band_pixels", [1, 60, 10_000])
@pytest.mark.parametrize(("height", "width"), [(2, 2), (6, 10), (16, 4)])
@pytest.mark.parametrize("circular", [False, True])
def test_winograd_is_a_3x3_convolution_whatever_the_bands(circular, height, width, band_pixels):
    torch.manual_seed(0)
    feature = torch.randn(2, height, width, 7)
    weight = torch.randn(5, 7, 3, 3).contiguous(memory_format=torch.channels_last)
    bias = torch.randn(5)
    found = torch.full((2, height, width, 5), float("nan"))
    upper = (height + 2) // 4 * 2  # in two goes, where there are rows enough
    winograd(feature, weight, bias, circular, found, 1.0, False, 0, upper, band_pixels)
    if upper < height:
        winograd(feature, weight, bias, circular, found, 1.0, False, upper, height, band_pixels)
    image = feature.permute(0, 3, 1, 2).double()
    image = torch.nn.functional.pad(image, (1, 1, 0, 0), mode="circular" if circular else "constant")
    expected = torch.nn.functional.conv2d(image, weight.double(), bias.double(), padding=(1, 0))
    torch.testing.assert_close(found.double(), expected.permute(0, 2, 3, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("slope", [0.0, 0.1, 1.0])
def test_winograd_activates_and_adds_to_what_it_finds(slope):
    torch.manual_seed(0)
    feature, out = torch.randn(2, 6, 8, 7), torch.randn(2, 6, 8, 5)
    weight = torch.randn(5, 7, 3, 3).contiguous(memory_format=torch.channels_last)
    expected = torch.nn.functional.conv2d(feature.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1)
    expected = torch.nn.functional.leaky_relu(expected, slope) + out
    winograd(feature, weight, torch.zeros(5), False, out, slope, True, 0, 6, band_pixels=20)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)


def test_full_size_network_uses_winograd_and_agrees_also_where_it_cannot():
    model = lively(NetworkConfig.ssgv3_21(azimuth_padding="circular", attention_kernel=1))
    deployed = deploy(model)
    assert sum(isinstance(m, WinogradConv) for m in deployed.modules()) >= 8
    for shape in ((1, 5, 6, 64), (1, 5, 7, 64), (1, 5, 6, 24)):  # odd heights and widths take the direct convolution
        assert_agree(model, deployed, torch.randn(shape))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 5, 8, 60), "multiple of 8"), ((1, 4, 8, 64), "expected an image"), ((5, 8, 64), "expected an image")],
)
def test_unusable_image_is_refused_also_when_scripted(shape, message):
    deployed = deploy(lively(NetworkConfig.ssgv3_21(attention_kernel=1).scaled(1 / 8)))
    with pytest.raises(ValueError, match=message):
        deployed(torch.zeros(shape))
    with pytest.raises(torch.jit.Error, match=message):
        torch.jit.script(deployed)(torch.zeros(shape))
