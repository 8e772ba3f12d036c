"""The memory of tensors that nobody needs any more -> the next tensors of the same scan.

A system maps fresh memory page by page, when it is first written to, which for a 64 x 2048 image of SqueezeSegV3-21
took a tenth of the time. So the layers hand their images on: who needs one takes it from those to spare, and who has
read one for the last time gives it back. On a GPU torch's own allocator does this, and nothing is kept here.
"""

from __future__ import annotations

from torch import Tensor


def memory_for(image: Tensor) -> list[Tensor]:
    """What the layers of a scan hand on: first what each may write to until it ends, then images to spare."""
    return [image.new_empty([0])]


def scratch(spare: list[Tensor], like: Tensor, size: int) -> Tensor:
    """So many uninitialised values, of the device and type of `like`, until the next layer asks for them."""
    if spare[0].numel() < size:
        spare[0] = _new(like, size)
    return spare[0][:size]


def take(spare: list[Tensor], like: Tensor, shape: list[int]) -> Tensor:
    """An uninitialised, contiguous tensor of the device and type of `like`: the smallest to spare that is large enough.

    Where none is, a new one takes the place of the largest.
    """
    size = 1
    for length in shape:
        size *= length
    best, largest = 0, 0
    for i in range(1, len(spare)):
        if spare[i].numel() >= size and (best == 0 or spare[i].numel() < spare[best].numel()):
            best = i
        if largest == 0 or spare[i].numel() > spare[largest].numel():
            largest = i
    if best > 0:
        return spare.pop(best)[:size].view(shape)
    if largest > 0:
        spare.pop(largest)
    return _new(like, size)[:size].view(shape)


def give(spare: list[Tensor], tensor: Tensor) -> None:
    """A contiguous tensor is no longer needed, nor is any view of it. More than the layers use at once are not kept.

    The next one gets the values that this tensor has, not what was reserved beyond them.
    """
    if tensor.device.type == "cpu" and len(spare) < 7:
        spare.append(tensor.view(-1))


def _new(like: Tensor, size: int) -> Tensor:
    """Uninitialised values, so many or more, made so that freeing them gives their memory back.

    glibc fragments its heap with pieces of up to 32 MB. Larger ones come from the system and return there; what is
    reserved but never touched costs nothing.
    """
    reserved = size
    if like.device.type == "cpu" and size * like.element_size() > 4_000_000:
        reserved = max(size, 34_000_000 // like.element_size())
    return like.new_empty([reserved])
