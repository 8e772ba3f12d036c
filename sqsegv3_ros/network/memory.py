"""The memory of tensors that nobody needs any more -> the next tensors of the same scan.

A system maps fresh memory page by page, when it is first written to, which for a 64 x 2048 image of SqueezeSegV3-21
took a tenth of the time. So the layers hand their images on: who needs one takes it from those to spare, and who has
read one for the last time gives it back. On a GPU torch's own allocator does this, and nothing is kept here.
"""

from __future__ import annotations

from torch import Tensor

def take(spare: list[Tensor], like: Tensor, shape: list[int]) -> Tensor:
    """An uninitialised, contiguous tensor of the device and type of `like`: the smallest to spare that is large enough.

    Where none is, a new one takes the place of the largest.
    """
    size = 1
    for length in shape:
        size *= length
    best, largest = -1, -1
    for i in range(len(spare)):
        if spare[i].numel() >= size and (best < 0 or spare[i].numel() < spare[best].numel()):
            best = i
        if largest < 0 or spare[i].numel() > spare[largest].numel():
            largest = i
    if best >= 0:
        return spare.pop(best)[:size].view(shape)
    if largest >= 0:
        spare.pop(largest)
    return _new(like, size).view(shape)


def give(spare: list[Tensor], tensor: Tensor) -> None:
    """A contiguous tensor is no longer needed, nor is any view of it. More than the layers use at once are not kept."""
    if tensor.device.type == "cpu" and len(spare) < 6:
        spare.append(tensor.view(-1))


def _new(like: Tensor, size: int) -> Tensor:
    """An uninitialised tensor, made so that freeing it gives its memory back.

    glibc fragments its heap with pieces of up to 32 MB. Larger ones come from the system and return there; what is
    reserved but never touched costs nothing.
    """
    reserved = size
    if like.device.type == "cpu" and size * like.element_size() > 4_000_000:
        reserved = max(size, 34_000_000 // like.element_size())
    return like.new_empty([reserved])[:size]
