import numpy as np
import pytest

from trainer.data.items import triplets
from trainer.data.order import BLOCK, BUFFER, Evaluation, Training, block_shuffled, shuffled

ITEMS = triplets([("a", 80), ("b", 55)], every=1)


@pytest.mark.parametrize("order", [shuffled, block_shuffled])
def test_an_order_is_a_permutation_that_seed_and_epoch_alone_decide(order):
    first = order(1000, 3, 0)
    assert sorted(first) == list(range(1000))
    assert (first == order(1000, 3, 0)).all()
    assert (first != order(1000, 3, 1)).any() and (first != order(1000, 4, 0)).any()


def test_a_block_shuffle_keeps_neighbours_within_one_buffer():
    order = block_shuffled(9_600, 0, 0)
    for first in range(0, 9_600 - BLOCK * BUFFER, BLOCK * BUFFER):
        buffer = order[first : first + BLOCK * BUFFER]
        assert len(set(buffer // BLOCK)) <= BUFFER
    assert np.abs(np.diff(order)).mean() > 1000


@pytest.mark.parametrize("by_block", [False, True])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_global_batches_are_the_same_for_any_number_of_ranks(world, by_block):
    def batch(step, world):
        each = [Training(ITEMS, 7, 8, rank, world, by_block=by_block) for rank in range(world)]
        return [ranks[step * 8 // world + turn].item for turn in range(8 // world) for ranks in each]

    steps = 2 * (len(ITEMS) // 8) + 3
    assert [batch(step, world) for step in range(steps)] == [batch(step, 1) for step in range(steps)]


def test_an_epoch_holds_every_item_at_most_once_and_drops_less_than_a_batch():
    schedule = Training(ITEMS, 7, 8)
    epoch = [schedule[k].item.key for k in range(schedule.steps_per_epoch * 8)]
    assert len(set(epoch)) == len(epoch) == len(ITEMS) // 8 * 8
    assert schedule[len(epoch)].epoch == 1


@pytest.mark.parametrize("stop", [1, 5, 16, 17, 40])
def test_resuming_at_any_step_gives_exactly_the_places_due(stop):
    whole = Training(ITEMS, 7, 8, rank=1, world=2)
    resumed = Training(ITEMS, 7, 8, rank=1, world=2, step=stop)
    assert [resumed[k] for k in range(100)] == [whole[stop * 4 + k] for k in range(100)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_an_evaluation_counts_every_item_once_over_all_ranks(world, batch):
    seen = []
    for rank in range(world):
        schedule = Evaluation(ITEMS, batch, rank, world)
        entries = [schedule[k] for k in range(schedule.steps * batch)]
        assert len(entries) % batch == 0
        seen += [entry.item.key for entry in entries if entry.counts]
    assert sorted(seen) == list(range(len(ITEMS)))
