"""What a GPU computes of an image, here on CPU tensors: beside OpenCV, float64, and the graph that a CPU uses."""

import weakref

import cv2
import numpy as np
import pytest
import torch
from samples import SIZE, Samples, random_samples
from scipy.ndimage import map_coordinates
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.data.augment import augment_params, no_augmentation
from trainer.data.dali import graph, opencv_images, torch_images
from trainer.data.image import INTERPOLATION, STD, make_image
from trainer.data.image_torch import PIXELS_PER_CALL, warp, warp_bytes, warp_items
from trainer.data.items import Item
from trainer.data.order import ScheduledItem
from trainer.data.source import assemble
from trainer.settings.settings import AugmentSettings

MODES = ["bilinear", "bicubic"]


def smooth(random, frames, height, width):
    noise = random.integers(0, 256, (frames, height, width)).astype(np.uint8)
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 1.5) for frame in noise])


def random_map(random, size, height, width):
    """(size, size) x and y in pixels, the first one's centre at 0.5: turned, stretched, moved, and partly outside."""
    angle, scale = random.uniform(-0.6, 0.6), random.uniform(0.7, 1.6, 2) * [width / size, height / size]
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    turned = (np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y)
    middle = np.array([width, height]) / 2 + random.uniform(-0.2, 0.2, 2) * [width, height]
    return [np.float32(turned[k] * scale[k] + middle[k]) for k in (0, 1)]


def by_cv2(frames, map_x, map_y, mode):
    maps = np.float32(map_x - np.float32(0.5)), np.float32(map_y - np.float32(0.5))
    return np.stack([cv2.remap(f, *maps, INTERPOLATION[mode], borderMode=cv2.BORDER_CONSTANT) for f in frames])


def cubic(t):
    """(..., 4) weights of the four neighbours, a = -0.75."""
    a, s = -0.75, np.abs(np.stack([t + 1, t, 1 - t, 2 - t], -1))
    near, far = (a + 2) * s**3 - (a + 3) * s**2 + 1, a * (s**3 - 5 * s**2 + 8 * s - 4)
    return np.where(s <= 1, near, far)


def by_float64(frames, map_x, map_y, mode):
    """Interpolation in double precision, not rounded."""
    x, y = np.float64(map_x) - 0.5, np.float64(map_y) - 0.5
    if mode == "bilinear":
        return np.stack([map_coordinates(np.float64(f), [y, x], order=1, mode="grid-constant") for f in frames])
    padded = np.pad(np.float64(frames), ((0, 0), (4, 4), (4, 4)))
    (height, width), first = frames.shape[1:], (np.floor(x).astype(int), np.floor(y).astype(int))
    weights = cubic(x - first[0]), cubic(y - first[1])
    out = np.zeros((len(frames), *x.shape))
    for j in range(4):
        for i in range(4):
            at_x, at_y = (np.clip(first[k] + (i, j)[k] - 1, -4, (width, height)[k] + 3) + 4 for k in (0, 1))
            out += padded[:, at_y, at_x] * weights[0][..., i] * weights[1][..., j]
    return np.clip(out, 0, 255)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "width"), [(96, 96), (61, 118), (300, 257)])
def test_a_warp_is_opencv_s_and_float64_s(height, width, mode):
    random = np.random.default_rng(height)
    apart = []
    for _ in range(8):
        frames, maps = smooth(random, 3, height, width), random_map(random, SIZE, height, width)
        found = warp(torch.from_numpy(frames)[None], *(torch.from_numpy(m)[None] for m in maps), mode)[0].numpy()
        assert found.dtype == np.uint8 and found.shape == (3, SIZE, SIZE) and (found == 0).any()
        exact = by_float64(frames, *maps, mode)
        assert np.abs(found - exact).max() < 0.5 + 2e-3, "but for the rounding"
        apart.append(np.abs(found.astype(int) - by_cv2(frames, *maps, mode)))
    assert np.max(apart) <= 1 and np.mean(apart) < 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_the_identity_and_whole_steps_change_nothing(mode):
    frames = np.random.default_rng(0).integers(0, 256, (2, 60, 60)).astype(np.uint8)
    y, x = (torch.from_numpy(np.float32(axis))[None] for axis in np.mgrid[:60, :60] + 0.5)
    assert np.array_equal(warp(torch.from_numpy(frames)[None], x, y, mode)[0].numpy(), frames)
    moved = warp(torch.from_numpy(frames)[None], x + 7, y - 3, mode)[0].numpy()
    assert (
        np.array_equal(moved[:, 3:, :53], frames[:, :57, 7:]) and not moved[:, :3].any() and not moved[:, :, 53:].any()
    )


@pytest.mark.parametrize("mode", MODES)
def test_what_lies_outside_is_black_however_far(mode):
    frames = torch.full((1, 1, 20, 20), 255, dtype=torch.uint8)
    far = torch.tensor([-1e6, -21.0, 10.0, 41.0, 1e6])
    found = warp(frames, far[None, None, :].expand(1, 5, 5), far[None, :, None].expand(1, 5, 5), mode)[0, 0]
    assert found[2, 2] == 255 and int(found.sum()) == 255


def items(shapes, seed=0, still_ones=False):
    """Samples of these (frames, height, width), augmented as in training."""
    random, samples, entries = np.random.default_rng(seed), [], []
    for k, shape in enumerate(shapes):
        item = Item(k, "a", 0, shape[0], 400)
        params = no_augmentation(SIZE) if still_ones else augment_params(0, 0, item, AugmentSettings(), SIZE)
        samples.append(assemble(smooth(random, *shape), params, k))
        entries.append(ScheduledItem(0, item))
    return Samples(samples, entries)


def run(source, images, mode="bilinear"):
    """Each sample's image, by the graph on a CPU."""
    pipe = graph(source, SIZE, mode, "cpu", images, batch_size=len(source.samples), num_threads=1, device_id=None)
    pipe.build()
    found, keys = pipe.run()
    assert keys.as_array().ravel().tolist() == [int(sample.key[0]) for sample in source.samples]
    return [np.array(tensor) for tensor in found]


def levels_apart(found, expected):
    """Grey levels between normalised images, of all pixels."""
    pairs = zip(found, expected, strict=True)
    return np.concatenate([np.abs((np.float64(a) - b) * STD[:, None, None]).ravel() for a, b in pairs])


KINDS = {
    "triplets of whole frames": [(3, 128, 128)] * 12,
    "windows of crops": [(24, 70 + k, 60) for k in range(4)],
    "whole studies": [(30, 64, 80), (57, 64, 64), (99, 90, 50)],
    "a large frame beside small ones": [(3, 2048, 2048), (3, 512, 512), (3, 512, 512), (3, 40, 31)],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_of_a_gpu_shows_what_a_cpu_s_shows(kind, mode):
    source = items(KINDS[kind])
    found, expected = run(source, torch_images, mode), run(source, opencv_images, mode)
    assert [image.shape for image in found] == [image.shape for image in expected]
    assert all(image.dtype == np.float16 for image in found)
    assert all(np.array_equal(e, make_image(s, SIZE, mode)) for e, s in zip(expected, source.samples, strict=True))
    apart = levels_apart(found, expected)
    assert apart.mean() < 1e-3 and np.quantile(apart, 0.999) < 0.1, (apart.mean(), apart.max())


def test_where_the_map_is_the_identity_both_graphs_are_equal():
    source = items([(3, SIZE, SIZE), (12, SIZE, SIZE)], still_ones=True)
    for found, expected in zip(run(source, torch_images), run(source, opencv_images), strict=True):
        assert np.abs(np.float32(found) - np.float32(expected)).max() < 2e-3, "float16, rounded twice"


def test_an_item_s_image_depends_on_no_other_of_its_batch(monkeypatch):
    shapes = [(6, 70, 60), (6, 71, 60), (6, 70, 60), (6, 70, 60)]
    source = items(shapes)
    together = run(source, torch_images)
    for k, image in enumerate(together):
        assert np.array_equal(run(Samples([source.samples[k]], [source.schedule[k]]), torch_images)[0], image)
    monkeypatch.setattr("trainer.data.image_torch.PIXELS_PER_CALL", 6 * SIZE * SIZE)  # an item a call
    assert all(map(np.array_equal, run(source, torch_images), together))


def test_a_call_takes_as_many_items_as_its_memory_allows(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "trainer.data.image_torch.warp", lambda images, *rest: calls.append(len(images)) or warp(images, *rest)
    )

    def moved(shapes, most):
        calls.clear()
        monkeypatch.setattr("trainer.data.image_torch.PIXELS_PER_CALL", most)
        samples = items(shapes).samples
        given = zip(*[map(torch.from_numpy, sample[:4]) for sample in samples], strict=True)
        assert len(warp_items(*map(list, given), "bilinear")) == len(shapes)
        return calls

    assert moved([(3, 40, 40)] * 64, PIXELS_PER_CALL) == [64]
    assert moved([(3, 40, 40)] * 5 + [(3, 41, 40)], 6 * SIZE * SIZE) == [2, 2, 1, 1]
    assert moved([(9, 200, 200)] * 2, 1) == [1, 1]


def test_random_samples_show_the_same_with_holes_and_warps():
    source = random_samples(16, 12)
    apart = levels_apart(run(source, torch_images), run(source, opencv_images))
    assert apart.mean() < 1e-3 and np.quantile(apart, 0.999) < 0.1


class Allocated(TorchDispatchMode):
    """Bytes of all tensors made inside that live at once, at most."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage and storage.data_ptr() not in self.alive:
                self.alive[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage.data_ptr())
                self.peak = max(self.peak, sum(self.alive.values()))
        return made


@pytest.mark.parametrize(("count", "frames", "side"), [(4, 24, 70), (2, 96, 200), (16, 3, 96)])
def test_a_call_allocates_what_is_reckoned_and_no_more(count, frames, side):
    given = [list(map(torch.from_numpy, sample[:4])) for sample in items([(frames, side, side)] * count).samples]
    with Allocated() as memory:
        warp_items(*map(list, zip(*given, strict=True)), "bilinear")
    reckoned = warp_bytes(count, frames, SIZE, side * side)
    assert 0.6 * reckoned < memory.peak < 1.001 * reckoned, memory.peak / reckoned
