"""Memory that is used again: never while anything still shows it."""

import gc
import threading
import time

import numpy as np
import pytest
import torch

from trainer.data.buffers import Buffers

SHAPE = (4, 8, 8)


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_an_array_is_gone():
    buffers = Buffers()
    first = buffers(SHAPE, np.float16)
    where = address(first)
    assert address(buffers(SHAPE, np.float16)) != where  # the first is still in use
    del first
    assert where in {address(buffers(SHAPE, np.float16)), address(buffers((2, 8, 16), np.float16))}


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array[1:],
        lambda array: array.reshape(-1)[3:],
        lambda array: array.view(np.uint16).T,
        torch.from_numpy,
        lambda array: torch.from_numpy(array)[2:].view(-1),
        lambda array: torch.from_numpy(array).untyped_storage(),
        lambda array: np.from_dlpack(array),
    ],
)
def test_a_view_keeps_the_memory(view):
    buffers = Buffers()
    array = buffers(SHAPE, np.float16)
    where, held = address(array), view(array)
    del array
    gc.collect()
    assert not buffers.free
    others = [buffers(SHAPE, np.float16) for _ in range(3)]
    assert where not in map(address, others)
    del held, others
    gc.collect()
    assert where in [address(memory) for memory in buffers.free]


def test_what_is_written_stays_however_many_arrays_come_and_go():
    buffers, kept = Buffers(), {}
    random = np.random.default_rng(0)
    for k in range(300):
        array = buffers((int(random.integers(1, 9)), 16), np.float32)
        array[...] = k
        if random.random() < 0.3:
            kept[k] = torch.from_numpy(array)[..., 3:]
        if kept and random.random() < 0.25:
            del kept[random.choice(list(kept))]
        assert all(bool((tensor == number).all()) for number, tensor in kept.items())


def test_threads_never_get_the_same_memory():
    buffers, wrong = Buffers(), []

    def work(number):
        for _ in range(400):
            array = buffers((4096,), np.uint8)
            array[...] = number
            time.sleep(0)
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(buffers.free) <= 2 * len(threads)  # each may hold two


def test_memory_that_is_much_too_large_is_not_used_and_what_is_kept_has_a_limit():
    buffers = Buffers(kept_bytes=1000)
    del (large := [buffers((900,), np.uint8)])[0]
    assert not large and [len(memory) for memory in buffers.free] == [900]
    small = buffers((100,), np.uint8)
    assert [len(memory) for memory in buffers.free] == [900]
    del small
    assert [len(memory) for memory in buffers.free] == [900, 100]
    del (more := [buffers((200,), np.uint8)])[0]
    assert not more and [len(memory) for memory in buffers.free] == [100, 200]
