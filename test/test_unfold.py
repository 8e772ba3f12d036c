"""A model file's weights can be trained again: the same function, with BatchNorms as training expects them."""

import pytest
import torch
from torch import nn

from sqsegv3_ros.artifact import default_model
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.deploy import deploy
from sqsegv3_ros.network.model import SqueezeSegV3
from sqsegv3_ros.network.unfold import measure_statistics, unfold
from sqsegv3_ros.training.checkpoint import is_model_file, load_weights
from sqsegv3_ros.training.module import SegmentationModule

NO_DROPOUT = {"dropout": 0.0, "decoder_dropout": 0.0, "head_dropout": 0.0}
CONFIGS = [
    NetworkConfig.ssgv3_21(attention_kernel=3, azimuth_padding="circular", num_classes=7, **NO_DROPOUT).scaled(1 / 8),
    NetworkConfig.ssgv3_21(channels=(4, 6, 8, 10, 10), blocks=(1, 2, 1, 1, 1), attention_kernel=1, **NO_DROPOUT),
]


def trained(config):
    torch.manual_seed(0)
    network = SqueezeSegV3(config)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(2, 5, 8, 64))
    return network.eval()


@pytest.mark.parametrize("config", CONFIGS, ids=["circular", "zero"])
def test_it_computes_what_the_deploy_form_does_before_and_after_its_statistics_are_measured(config):
    network, images = trained(config), [torch.randn(2, 5, 8, 64) for _ in range(4)]
    again = unfold(deploy(network).state_dict(), config)
    with torch.no_grad():
        expected = network(images[0])[0].softmax(1)
        torch.testing.assert_close(again(images[0])[0].softmax(1), expected, rtol=0, atol=1e-5)
        measure_statistics(again, images)
        torch.testing.assert_close(again(images[0])[0].softmax(1), expected, rtol=0, atol=1e-5)
        # in training the BatchNorms take the batch's statistics: here all of what was measured on
        found = again.train()(torch.cat(images))[0].softmax(1)
        torch.testing.assert_close(found, again.eval()(torch.cat(images))[0].softmax(1), rtol=0, atol=1e-4)
    again.train()(images[0])[0].square().sum().backward()
    learns = {name: p.grad is not None and bool(p.grad.any()) for name, p in again.named_parameters()}
    assert all(p.grad.isfinite().all() for p in again.parameters() if p.grad is not None)
    heads = {name for name in learns if name.startswith("heads.") and not name.startswith("heads.0.")}
    assert not [name for name, does in learns.items() if not does and name not in heads]


def test_statistics_are_those_of_the_values_that_arrive():
    network = unfold(deploy(trained(CONFIGS[1])).state_dict(), CONFIGS[1])
    images = [torch.randn(1, 5, 8, 64), torch.randn(3, 5, 8, 64)]
    measure_statistics(network, images)
    with torch.no_grad():
        values = network.stem.conv(torch.cat(images))
    torch.testing.assert_close(network.stem.norm.running_mean, values.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.stem.norm.running_var, values.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)


def test_training_can_start_from_the_model_that_ships():
    path = default_model()
    assert is_model_file(path) and not is_model_file(path.with_suffix(".md"))
    module = torch.jit.load(path).float()
    fitting = NetworkConfig.ssgv3_21(
        blocks=(1, 1, 1, 1, 1), channels=(8, 16, 24, 48, 48), attention_kernel=1, azimuth_padding="circular"
    )
    network = SqueezeSegV3(fitting)
    assert str(path) in load_weights(network, path)
    image = torch.randn(1, 5, 8, 64)
    with torch.no_grad():
        found = network.eval()(image)[0].softmax(1)
        torch.testing.assert_close(found, module(image).softmax(1), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="do not fit the network"):
        load_weights(SqueezeSegV3(fitting.scaled(0.5)), path)
    by_name = SegmentationModule(network=fitting, start_from="default")
    assert torch.equal(by_name.network.stem.conv.weight, network.stem.conv.weight)
    with pytest.raises(UserError, match="there is no model defualt: no file, and none that ships"):
        SegmentationModule(network=fitting, start_from="defualt")
