"""Images moved by torch, on any device: what the DALI graph computes on a GPU. On a CPU OpenCV does the same in less time."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

PIXELS_A_CALL = 2**26
"""of input or output, whichever are more: 256 MiB each in float32; a larger item is moved by itself"""
GRAPH_BATCHES = 3
"""batches in a DALI graph at once: one that is made, and those that wait for the network"""


def graph_bytes(items: int, frames: int, size: int, crop_pixels: int) -> int:
    """What the DALI graph takes of a GPU's memory at most beside the batch that the network has, reckoned from its buffers.

    crop_pixels: of the largest slice that is read. An operator's output lives until the next has read it; they are counted
    as if all did: pixels as read, moved and with cutouts in uint8, normalised in float16. Then one call of `warp`, and the
    normalised batch that is handed over.
    """
    slices, image = items * frames, size * size
    buffers = slices * (crop_pixels + 4 * image)
    return GRAPH_BATCHES * buffers + warp_bytes(items, frames, size, crop_pixels) + 2 * slices * image


def warp_bytes(items: int, frames: int, size: int, crop_pixels: int) -> int:
    """What a call of `warp` allocates at most: input and output in uint8 and float32, maps and grids."""
    image = size * size
    largest = max(frames * max(crop_pixels, image), min(PIXELS_A_CALL, items * frames * max(crop_pixels, image)))
    return (4 + 1) * 2 * largest + items * image * 4 * 6


def warp_items(
    pixels: Sequence[Tensor], matrices: Sequence[Tensor], axes_x: Sequence[Tensor], axes_y: Sequence[Tensor], mode: str
) -> list[Tensor]:
    """Each item (frames, h, w, 1) uint8 -> (frames, size, size, 1) uint8, by its own map, as a `Sample` gives it.

    matrices: (2, 3). axes_x: (1, size). axes_y: (size, 1). All float32. mode: bilinear or bicubic. Items of one shape are
    moved in one call.
    """
    found: dict[int, Tensor] = {}
    for places in _calls(pixels, axes_x[0].numel() if axes_x else 0):
        maps = [_map(matrices[place], axes_x[place], axes_y[place]) for place in places]
        map_x, map_y = (torch.stack(own) for own in zip(*maps, strict=True))
        moved = warp(torch.stack([pixels[place][..., 0] for place in places]), map_x, map_y, mode)
        found.update(zip(places, moved[..., None], strict=True))
    return [found[place] for place in range(len(pixels))]


def warp(images: Tensor, map_x: Tensor, map_y: Tensor, mode: str) -> Tensor:
    """(items, frames, h, w) uint8 through (items, size, size) maps in pixels, the first one's centre at 0.5
    -> (items, frames, size, size) uint8; 0 outside."""
    height, width = images.shape[2:]
    grid = torch.stack([map_x * (2 / width) - 1, map_y * (2 / height) - 1], -1)
    moved = grid_sample(images.float(), grid, mode=mode, padding_mode="zeros", align_corners=False)
    return moved.clamp_(0, 255).round_().to(torch.uint8)


def _map(matrix: Tensor, axis_x: Tensor, axis_y: Tensor) -> tuple[Tensor, Tensor]:
    """(size, size) each: where each output pixel looks, x and y."""
    (a, b, c), (d, e, f) = matrix
    return a * axis_x + b * axis_y + c, d * axis_x + e * axis_y + f


def _calls(pixels: Sequence[Tensor], size: int) -> list[list[int]]:
    """Places of the items that are moved together."""
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, item in enumerate(pixels):
        by_shape[tuple(item.shape)].append(place)
    calls = []
    for (frames, height, width, _), places in by_shape.items():
        together = max(1, PIXELS_A_CALL // (frames * max(height * width, size * size)))
        calls += [places[first : first + together] for first in range(0, len(places), together)]
    return calls
