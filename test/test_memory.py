"""The memory that the layers of a scan hand on: whose it is, and which piece is taken."""

import pytest
import torch

from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.deploy import deploy
from sqsegv3_ros.network.memory import give, memory_for, scratch, take
from sqsegv3_ros.network.model import SqueezeSegV3

LIKE = torch.zeros(1)


def with_spare(*sizes):
    spare = memory_for(LIKE)
    tensors = [torch.empty(size) for size in sizes]
    for tensor in tensors:
        give(spare, tensor)
    return spare, [t.data_ptr() for t in tensors]


def test_the_smallest_piece_that_is_large_enough_is_taken_and_nobody_else_gets_it():
    spare, (large, small, tiny) = with_spare(100, 24, 8)
    taken = take(spare, LIKE, [2, 3, 4])
    assert taken.shape == (2, 3, 4) and taken.is_contiguous() and taken.data_ptr() == small
    assert take(spare, LIKE, [24]).data_ptr() == large
    assert take(spare, LIKE, [5]).data_ptr() == tiny


def test_a_new_piece_takes_the_place_of_the_largest_that_is_too_small():
    spare, (small, smaller) = with_spare(20, 10)
    taken = take(spare, LIKE, [30])
    assert taken.data_ptr() not in (small, smaller)
    assert [piece.data_ptr() for piece in spare[1:]] == [smaller]


def test_what_is_given_back_is_taken_again():
    spare, _ = with_spare()
    first = take(spare, LIKE, [3, 5])
    give(spare, first)
    assert take(spare, LIKE, [15]).data_ptr() == first.data_ptr()


def test_every_layer_gets_the_same_scratch_which_no_image_is_made_of():
    spare, _ = with_spare()
    first = scratch(spare, LIKE, 2_000_000)  # large pieces are reserved larger, so that they can grow
    assert scratch(spare, LIKE, 3_000_000).data_ptr() == first.data_ptr()
    assert take(spare, LIKE, [10]).data_ptr() != first.data_ptr()
    assert scratch(spare, LIKE, 20_000_000).numel() == 20_000_000


def test_not_more_is_kept_than_layers_use_at_once():
    spare, _ = with_spare(*[4] * 100)
    assert len(spare) < 10


@pytest.mark.parametrize("stripes", [1, 2])
def test_scans_do_not_see_what_the_memory_held_before(stripes):
    torch.manual_seed(0)
    model = SqueezeSegV3(NetworkConfig.ssgv3_21(attention_kernel=3).scaled(1 / 4)).eval()
    deployed = torch.jit.script(deploy(model))
    deployed.stripes = stripes
    images = [torch.randn(1, 5, 8, 64), torch.full((1, 5, 8, 64), float("nan")), torch.randn(2, 5, 16, 64)]
    with torch.no_grad():
        first = [deployed(image).clone() for image in images]
        again = [deployed(image) for image in images]
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert not first[0].isnan().any() and not first[2].isnan().any()
