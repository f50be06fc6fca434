"""Image warping by torch on any device, for the DALI graph on a GPU. On a CPU OpenCV computes the same in less time."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

PIXELS_PER_CALL = 2**26
"""most pixels of input or output in one call of `warp`, 256 MiB in float32; a larger item has a call of its own"""
GRAPH_BATCHES = 3
"""batches in a DALI graph at once: the one in computation, and those prefetched"""


def graph_bytes(items: int, frames: int, size: int, crop_pixels: int) -> int:
    """Upper bound of the GPU memory that the DALI graph needs, without the batch in use by the network.

    crop_pixels: of the largest slice. Counts all operators' outputs (read, warped and with cutouts in uint8, normalised in
    float16), one call of `warp`, and the normalised batch that is passed on.
    """
    slices, image = items * frames, size * size
    buffers = slices * (crop_pixels + 4 * image)
    return GRAPH_BATCHES * buffers + warp_bytes(items, frames, size, crop_pixels) + 2 * slices * image


def warp_bytes(items: int, frames: int, size: int, crop_pixels: int) -> int:
    """Upper bound of what one call of `warp` allocates: input and output in uint8 and float32, maps and grids."""
    image = size * size
    item = frames * max(crop_pixels, image)
    largest = max(item, min(PIXELS_PER_CALL, items * item))
    return (4 + 1) * 2 * largest + items * image * 4 * 6


def warp_items(
    pixels: Sequence[Tensor], matrices: Sequence[Tensor], axes_x: Sequence[Tensor], axes_y: Sequence[Tensor], mode: str
) -> list[Tensor]:
    """Each item (frames, h, w, 1) uint8 -> (frames, size, size, 1) uint8, by the map of its `Sample`.

    matrices: (2, 3). axes_x: (1, size). axes_y: (size, 1). All float32. mode: bilinear or bicubic. Items of the same shape
    share a call.
    """
    warped: dict[int, Tensor] = {}
    for group in _calls(pixels, axes_x[0].numel() if axes_x else 0):
        maps = [_map(matrices[i], axes_x[i], axes_y[i]) for i in group]
        map_x, map_y = (torch.stack(each) for each in zip(*maps, strict=True))
        images = warp(torch.stack([pixels[i][..., 0] for i in group]), map_x, map_y, mode)
        warped.update(zip(group, images[..., None], strict=True))
    return [warped[i] for i in range(len(pixels))]


def warp(images: Tensor, map_x: Tensor, map_y: Tensor, mode: str) -> Tensor:
    """(items, frames, h, w) uint8 -> (items, frames, size, size) uint8; 0 outside.

    map_x, map_y: (items, size, size) coordinates in pixels; the first pixel's centre is 0.5.
    """
    height, width = images.shape[2:]
    grid = torch.stack([map_x * (2 / width) - 1, map_y * (2 / height) - 1], -1)
    warped = grid_sample(images.float(), grid, mode=mode, padding_mode="zeros", align_corners=False)
    return warped.clamp_(0, 255).round_().to(torch.uint8)


def _map(matrix: Tensor, axis_x: Tensor, axis_y: Tensor) -> tuple[Tensor, Tensor]:
    """(size, size) each: the x and y that each output pixel samples."""
    (a, b, c), (d, e, f) = matrix
    return a * axis_x + b * axis_y + c, d * axis_x + e * axis_y + f


def _calls(pixels: Sequence[Tensor], size: int) -> list[list[int]]:
    """Indices of the items that share a call of `warp`."""
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, item in enumerate(pixels):
        by_shape[tuple(item.shape)].append(i)
    calls = []
    for (frames, height, width, _), same in by_shape.items():
        count = max(1, PIXELS_PER_CALL // (frames * max(height * width, size * size)))
        calls += [same[first : first + count] for first in range(0, len(same), count)]
    return calls
