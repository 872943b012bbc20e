import collections
import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler

from miwv_trainer.training.sampler import MIWVDataSampler
from tests.helpers.batches import drawn as dealt
from tests.helpers.batches import steps

POOL_SIZE = 200
CHOSEN = np.array([3, 17, 20, 41, 59, 88, 90, 101, 130, 144, 150, 151, 160, 170, 171, 172, 180, 190, 198, 199])


def sampler_of(selection=CHOSEN, seed: int = 7, fraction: float = 0.1) -> MIWVDataSampler:
    sampler = MIWVDataSampler(POOL_SIZE, fraction=fraction, seed=seed)
    sampler.set_selection(selection)
    return sampler


def test_an_epoch_yields_every_selected_index_once_and_nothing_else():
    sampler = sampler_of()
    for epoch in range(5):
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert sorted(drawn) == CHOSEN.tolist()
        assert all(type(index) is int for index in drawn)


def test_an_epoch_is_shuffled():
    assert list(sampler_of()) != CHOSEN.tolist()


def test_the_length_is_fixed_before_the_first_selection():
    sampler = MIWVDataSampler(52_002, fraction=0.01)
    assert len(sampler) == 520
    sampler.set_selection(np.arange(3))
    assert len(sampler) == 520 == len(list(sampler))


def test_the_order_does_not_depend_on_the_order_in_which_indices_were_given():
    backwards = sampler_of(CHOSEN[::-1])
    shuffled = sampler_of(np.random.default_rng(0).permutation(CHOSEN).tolist())
    assert list(sampler_of()) == list(backwards) == list(shuffled)


def test_the_order_does_not_depend_on_the_global_random_state():
    orders = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        orders.append(list(sampler_of()))
    assert orders[0] == orders[1]


def test_the_order_does_not_depend_on_epochs_drawn_before():
    fresh, used = sampler_of(), sampler_of()
    for epoch in range(3):
        used.set_epoch(epoch)
        list(used)
    fresh.set_epoch(5)
    used.set_epoch(5)
    assert list(fresh) == list(used)


def test_the_order_does_not_depend_on_fraction_or_pool_size():
    larger = MIWVDataSampler(1_000, fraction=0.02, seed=7)
    larger.set_selection(CHOSEN)
    assert list(larger) == list(sampler_of())


def test_epochs_and_seeds_differ():
    sampler = sampler_of()
    orders = [sampler.order(epoch).tolist() for epoch in range(6)]
    orders += [sampler_of(seed=seed).order(0).tolist() for seed in (0, 1, 8)]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_seed_and_epoch_are_not_added_up():
    assert sampler_of(seed=7).order(1).tolist() != sampler_of(seed=8).order(0).tolist()


def test_an_epoch_that_is_held_is_trained_whatever_dataloaders_tell():
    sampler = sampler_of()
    sampler.hold_epoch(3)
    for epoch in (0, 4):
        sampler.set_epoch(epoch)
        assert list(sampler) == sampler.order(3).tolist()
    sampler.release_epoch()
    sampler.set_epoch(1)
    assert list(sampler) == sampler.order(1).tolist() != sampler.order(3).tolist()


@pytest.mark.parametrize("processes", [1, 2])
def test_the_loader_that_skips_batches_trains_the_rest_of_the_epoch_that_is_held(processes):
    """Before accelerate 1.15 it takes itself for a loader in its first epoch (huggingface/accelerate#4071)."""
    sampler = sampler_of()
    sampler.set_epoch(2)
    expected = sampler.order(2).tolist()[8:]
    assert sum(steps(dealt(sampler, processes, 4 // processes, skip=2), 1), []) == expected


def test_iterating_leaves_the_global_random_state_alone():
    random_before, numpy_before, torch_before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    sampler = sampler_of()
    sampler.set_epoch(1)
    list(sampler)
    assert random.getstate() == random_before
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_before, strict=True))
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_a_new_selection_takes_effect_with_the_next_epoch_and_not_within_one():
    sampler = sampler_of()
    expected = list(sampler)
    running = iter(sampler)
    drawn = [next(running) for _ in range(5)]
    sampler.set_selection(np.arange(20))
    assert drawn + list(running) == expected
    assert sorted(sampler) == list(range(20))


LATER = np.arange(0, 200, 10)  # 20 samples, of which CHOSEN has 90, 130, 150, 160, 170, 180, 190 and 20


@pytest.mark.parametrize("drawn", [0, 1, 7])
def test_a_selection_takes_over_at_its_place_in_the_running_epoch(drawn):
    sampler = sampler_of()
    old = sampler.order(0).tolist()
    running = iter(sampler)
    begun = [next(running) for _ in range(drawn)]
    sampler.switch_selection(LATER, 0, 8)
    order = begun + list(running)
    assert order[:8] == old[:8]
    # The rest by hand: the new selection in its own order for this epoch, less what the epoch has had.
    shuffled = np.random.default_rng([7, 0]).permutation(LATER).tolist()
    assert order[8:] == [index for index in shuffled if index not in old[:8]][:12]
    assert len(set(order)) == 20
    assert sampler.order(0).tolist() == order
    assert sorted(sampler.order(1)) == LATER.tolist()
    assert sampler.selection.tolist() == LATER.tolist()


def test_the_same_selection_again_changes_nothing():
    sampler = sampler_of()
    old = sampler.order(3).tolist()
    sampler.switch_selection(CHOSEN, 3, 5)
    assert sampler.order(3).tolist() == old


def test_a_later_switch_leaves_the_order_before_it_alone():
    sampler = sampler_of()
    sampler.switch_selection(LATER, 1, 6)
    before = [sampler.order(epoch).tolist() for epoch in (0, 1)]
    sampler.switch_selection(np.arange(20), 1, 13)
    assert sampler.order(0).tolist() == before[0]
    assert sampler.order(1).tolist()[:13] == before[1][:13]
    assert set(sampler.order(1)[13:]) <= set(range(20)) - set(before[1][:13])
    assert sorted(sampler.order(2)) == list(range(20))


def test_trained_samples_return_within_an_epoch_only_where_fewer_are_left():
    sampler = sampler_of()
    had = sampler.order(0)[:8].tolist()
    few = [*had[:3], *(index for index in LATER.tolist() if index not in had)][:9]  # six that the epoch has not had
    sampler.switch_selection(np.array(few), 0, 8)
    rest = sampler.order(0)[8:].tolist()
    assert set(rest[:6]) == set(few) - set(had)
    assert set(rest[6:9]) == set(had[:3])
    assert rest[9:] == rest[:3]


@pytest.mark.parametrize(("epoch", "position", "is_drawn"), [(0, 5, True), (0, 6, False), (1, 0, False)])
def test_what_has_been_drawn_cannot_be_selected_anew(epoch, position, is_drawn):
    sampler = sampler_of()
    running = iter(sampler)
    for _ in range(6):
        next(running)
    assert sampler.is_drawn(epoch, position) == is_drawn
    if is_drawn:
        with pytest.raises(RuntimeError, match=r"position 5 of epoch 0: 6 positions of epoch 0 have been drawn"):
            sampler.switch_selection(LATER, epoch, position)
        assert sampler.selection.tolist() == CHOSEN.tolist()
    else:
        sampler.switch_selection(LATER, epoch, position)


@pytest.mark.parametrize(("epoch", "position"), [(1, 3), (0, 9), (1, 20), (1, -1)])
def test_a_place_before_the_last_one_or_outside_the_epoch_is_refused(epoch, position):
    sampler = sampler_of()
    sampler.switch_selection(LATER, 1, 4)
    with pytest.raises(
        ValueError, match=rf"from 0 to 19, and not before position 4 of epoch 1.*got position {position}"
    ):
        sampler.switch_selection(CHOSEN, epoch, position)


def test_there_is_nothing_to_take_over_from_before_the_first_selection():
    with pytest.raises(RuntimeError, match="no selection yet"):
        MIWVDataSampler(POOL_SIZE, fraction=0.1).switch_selection(CHOSEN, 0, 4)


def test_a_selection_smaller_than_the_length_is_repeated_evenly():
    sampler = sampler_of(CHOSEN[:6])
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 20
    assert drawn[:6] == drawn[6:12] == drawn[12:18]
    assert sorted(drawn[:6]) == CHOSEN[:6].tolist()
    assert drawn[18:] == drawn[:2]


def test_a_loader_yields_what_the_sampler_orders():
    sampler = sampler_of()
    batches = list(DataLoader(list(range(POOL_SIZE)), batch_size=4, sampler=sampler))
    assert torch.cat(batches).tolist() == list(sampler)


def test_iterating_without_a_selection_is_an_error_that_names_the_callback():
    with pytest.raises(RuntimeError, match=r"no selection yet.*callbacks=\[MIWVCallback\(config, sampler\)\]"):
        iter(MIWVDataSampler(POOL_SIZE))


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ([3, 4, 3, 3], "The selection names 2 samples twice"),
        ([], r"must hold 1 to 200 samples, but got 0"),
        (list(range(201)), r"must lie in 0 to 199, but spans 0 to 200"),
        ([-1, 5], r"must lie in 0 to 199, but spans -1 to 5"),
        ([5, 200], r"must lie in 0 to 199, but spans 5 to 200"),
    ],
)
def test_an_impossible_selection_is_refused_and_the_old_one_stays(selection, words):
    sampler = sampler_of()
    with pytest.raises(ValueError, match=words):
        sampler.set_selection(np.asarray(selection, dtype=np.int64))
    assert sampler.selection.tolist() == CHOSEN.tolist()


@pytest.mark.parametrize("pool_size", [0, 1])
def test_a_pool_of_fewer_than_two_samples_is_refused(pool_size):
    with pytest.raises(ValueError, match=rf"`pool_size` must be at least 2, but got {pool_size}"):
        MIWVDataSampler(pool_size)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_an_impossible_fraction_is_refused(fraction):
    with pytest.raises(ValueError, match=r"`fraction` must be a number above 0 and at most 1"):
        MIWVDataSampler(POOL_SIZE, fraction=fraction)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match=r"seed` must be a whole number of at least 0.*-1"):
        MIWVDataSampler(POOL_SIZE, seed=-1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "shortest"}, '"random", "sequential", "group_by_length", but got \'shortest\''),
        (
            {"strategy": "group_by_length", "batch_size": 4},
            "length of each of the 200 samples of the pool, but got none",
        ),
        ({"strategy": "group_by_length", "lengths": np.ones(9), "batch_size": 4}, "but got 9: give them as `lengths`"),
        ({"strategy": "group_by_length", "lengths": np.ones(200)}, "at least 1, but got None: give it as `batch_size`"),
        (
            {"epoch_order": "harder"},
            '`epoch_order` must be one of "shuffled", "easy_to_hard", "hard_to_easy", .*\'harder\'',
        ),
        (
            {"strategy": "sequential", "epoch_order": "hard_to_easy"},
            '"sequential"` is the order of the pool and `epoch_order="hard_to_easy"` is another: an epoch has one',
        ),
    ],
)
def test_a_strategy_or_order_that_is_unknown_or_does_not_fit_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        MIWVDataSampler(POOL_SIZE, **options)


def test_sequential_is_pool_order_in_every_epoch_and_from_a_switch_on():
    sampler = MIWVDataSampler(POOL_SIZE, fraction=0.1, seed=7, strategy="sequential")
    sampler.set_selection(CHOSEN[::-1])
    assert sampler.order(0).tolist() == sampler.order(3).tolist() == CHOSEN.tolist()
    other = np.arange(20) * 3  # six of them are among those that the epoch has had
    sampler.switch_selection(other, 1, 12)
    order = sampler.order(1).tolist()
    assert order[:12] == CHOSEN[:12].tolist()
    assert order[12:] == sorted(set(other.tolist()) - set(order[:12]))[:8]


def test_like_lengths_stay_together_where_a_selection_takes_over():
    lengths = np.random.default_rng(0).integers(1, 100, POOL_SIZE)
    sampler = MIWVDataSampler(POOL_SIZE, 0.4, 7, "group_by_length", lengths, 4)
    sampler.set_selection(np.arange(80))
    before = sampler.order(0).tolist()
    sampler.switch_selection(np.arange(60, 140), 0, 40)
    order = sampler.order(0)
    assert order[:40].tolist() == before[:40]
    assert len(set(order.tolist())) == 80
    spread = [np.ptp(lengths[batch]) for batch in order.reshape(-1, 4)]
    assert np.mean(spread) < 25  # of 4 among 100 at random: 60


def test_accelerate_finds_nothing_to_replace_or_to_seed():
    sampler = sampler_of()
    assert isinstance(sampler, Sampler)
    assert not isinstance(sampler, RandomSampler | BatchSampler)
    assert not hasattr(sampler, "generator")


LENGTHS = np.random.default_rng(5).integers(1, 100, POOL_SIZE)
DIFFICULTY = np.round(np.random.default_rng(6).normal(size=POOL_SIZE), 1)  # of the pool, with ties
EVEN = np.arange(0, POOL_SIZE, 2)  # 100 samples, five epochs of 20


def permuted(selection, *seed):
    return np.random.default_rng(seed).permutation(np.sort(selection)).tolist()


def ordered_sampler(epoch_order, selection=CHOSEN, strategy="random", fraction: float = 0.1) -> MIWVDataSampler:
    sampler = MIWVDataSampler(POOL_SIZE, fraction, 7, strategy, LENGTHS, 4, epoch_order=epoch_order)
    sampler.set_selection(selection, DIFFICULTY[selection])
    return sampler


def before_selections_could_be_larger(strategy, selection, epoch):
    """20 positions of an epoch, for a selection of at most 20, seed 7 and steps of 4."""
    order = sorted(selection) if strategy == "sequential" else permuted(selection, 7, epoch)
    if strategy == "group_by_length":
        size = 4 * max(1, len(order) // 16)
        groups = [order[at : at + size] for at in range(0, len(order), size)]
        groups = [sorted(group, key=lambda index: -LENGTHS[index]) for group in groups]
        order = list(itertools.chain(*groups))
        longest = max(range(len(groups)), key=lambda group: LENGTHS[groups[group][0]]) * size
        order[0], order[longest] = order[longest], order[0]
    return list(itertools.islice(itertools.cycle(order), 20))


@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
@pytest.mark.parametrize("count", [1, 3, 6, 17, 20])
def test_a_selection_no_larger_than_an_epoch_has_the_order_it_always_had(strategy, count):
    sampler = MIWVDataSampler(POOL_SIZE, 0.1, 7, strategy, LENGTHS, 4)
    sampler.set_selection(CHOSEN[:count], DIFFICULTY[:count])  # a difficulty that is not asked for
    later = LATER[:count]
    sampler.switch_selection(later, 3, 0)
    for epoch in range(6):
        selection = CHOSEN[:count] if epoch < 3 else later
        assert sampler.order(epoch).tolist() == before_selections_could_be_larger(strategy, selection, epoch)


def test_epochs_walk_through_a_larger_selection():
    sampler = sampler_of(EVEN)
    passes = [permuted(EVEN, 7, number) for number in (0, 1)]
    walked = [sampler.order(epoch).tolist() for epoch in range(10)]
    assert list(itertools.chain(*walked)) == passes[0] + passes[1]  # 5 epochs each: none goes from one to the next
    assert len(sampler) == 20


def test_an_epoch_has_nothing_twice_where_it_goes_from_one_pass_to_the_next():
    selection = np.arange(30)
    orders = [sampler_of(selection).order(epoch).tolist() for epoch in range(3)]
    first, second = permuted(selection, 7, 0), permuted(selection, 7, 1)
    tail = first[20:]
    assert set(second[:10]) & set(tail)  # what would be there twice
    second = [index for index in second if index not in tail] + [index for index in second if index in tail]
    assert orders == [first[:20], tail + second[:10], second[10:]]


@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
@pytest.mark.parametrize(("count", "fraction"), [(21, 0.1), (39, 0.1), (41, 0.1), (64, 0.1), (200, 0.1), (199, 0.35)])
def test_every_sample_of_a_larger_selection_is_trained_equally_often(strategy, count, fraction):
    sampler = MIWVDataSampler(POOL_SIZE, fraction, 3, strategy, LENGTHS, 4)
    sampler.set_selection(np.arange(POOL_SIZE - count, POOL_SIZE))
    later = np.arange(count)
    sampler.switch_selection(later, 7, 0)
    for start, lowest, epochs in ((0, POOL_SIZE - count, 7), (7, 0, 16)):
        times = collections.Counter()
        for epoch in range(start, start + epochs):
            order = sampler.order(epoch).tolist()
            assert len(set(order)) == len(order) == len(sampler)
            times.update(order)
            counts = [times[index] for index in range(lowest, lowest + count)]
            assert sum(counts) == times.total() and max(counts) - min(counts) <= 1


def test_a_larger_selection_is_walked_in_pool_order_if_sequential():
    sampler = MIWVDataSampler(10, 0.4, strategy="sequential")
    sampler.set_selection([9, 8, 7, 6, 5, 1])
    expected = [[1, 5, 6, 7], [8, 9, 1, 5], [6, 7, 8, 9], [1, 5, 6, 7]]
    assert [sampler.order(epoch).tolist() for epoch in range(4)] == expected
    sampler.set_selection([9, 8, 7, 6, 5, 1, 0])
    expected = [[0, 1, 5, 6], [7, 8, 9, 0], [1, 5, 6, 7], [8, 9, 0, 1], [5, 6, 7, 8]]
    assert [sampler.order(epoch).tolist() for epoch in range(5)] == expected


def test_the_walk_begins_where_the_selection_takes_effect_and_not_with_the_same_samples_each_time():
    sampler = sampler_of()
    sampler.switch_selection(EVEN, 2, 0)
    sampler.switch_selection(EVEN, 4, 0)
    second, third = permuted(EVEN, 7, 2), permuted(EVEN, 7, 4)
    expected = [second[:20], second[20:40], third[:20], third[20:40]]
    assert [sampler.order(epoch).tolist() for epoch in (2, 3, 4, 5)] == expected
    assert set(second[:20]) != set(third[:20])


@pytest.mark.parametrize("epoch_order", ["shuffled", "easy_to_hard"])
@pytest.mark.parametrize("position", [1, 8, 19])
def test_a_larger_selection_takes_over_within_an_epoch_with_what_the_epoch_has_not_had(position, epoch_order):
    sampler = ordered_sampler(epoch_order, EVEN)
    before = sampler.order(3).tolist()
    larger = np.arange(60)
    sampler.switch_selection(larger, 3, position, DIFFICULTY[larger])
    order = sampler.order(3).tolist()
    chosen = permuted(larger, 7, 3)[:20]
    if epoch_order == "easy_to_hard":
        chosen.sort(key=lambda index: DIFFICULTY[index])
    assert order[:position] == before[:position]
    assert order[position:] == [index for index in chosen if index not in before[:position]][: 20 - position]
    assert len(set(order)) == 20
    assert not set(sampler.order(4)) & set(chosen)  # 40 of 60 in two epochs


@pytest.mark.parametrize("selection", [CHOSEN, EVEN])
@pytest.mark.parametrize(("epoch_order", "sign"), [("easy_to_hard", 1), ("hard_to_easy", -1)])
def test_an_epoch_goes_by_difficulty_and_equally_hard_samples_stay_shuffled(epoch_order, sign, selection):
    sampler, shuffled = ordered_sampler(epoch_order, selection), ordered_sampler("shuffled", selection)
    for epoch in range(4):
        order = sampler.order(epoch)
        assert (np.diff(DIFFICULTY[order]) * sign >= 0).all()
        assert order.tolist() == sorted(shuffled.order(epoch).tolist(), key=lambda index: sign * DIFFICULTY[index])


def test_an_order_by_difficulty_by_hand():
    sampler = MIWVDataSampler(10, 0.4, seed=7, epoch_order="easy_to_hard")
    sampler.set_selection([8, 2, 5, 3], [-1.5, 4.0, 0.0, 0.25])
    assert list(sampler) == [8, 5, 3, 2]
    sampler.switch_selection([9, 0], 1, 0, [-2, -3])
    assert sampler.order(1).tolist() == [0, 9, 0, 9]  # a smaller selection, repeated
    harder_first = MIWVDataSampler(10, 0.4, seed=7, epoch_order="hard_to_easy")
    harder_first.set_selection([8, 2, 5, 3], [-1.5, 4.0, 0.0, 0.25])
    assert list(harder_first) == [2, 3, 5, 8]


def test_an_order_by_difficulty_differs_between_epochs_only_among_equally_hard_samples():
    sampler = MIWVDataSampler(POOL_SIZE, 0.1, 7, epoch_order="easy_to_hard")
    sampler.set_selection(CHOSEN, np.repeat([2.0, 1.0], 10))
    orders = [sampler.order(epoch).tolist() for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    for order in orders:
        assert sorted(order[:10]) == CHOSEN[10:].tolist()
        assert sorted(order[10:]) == CHOSEN[:10].tolist()


@pytest.mark.parametrize("count", [80, 150])
@pytest.mark.parametrize(("epoch_order", "sign"), [("easy_to_hard", 1), ("hard_to_easy", -1)])
def test_groups_of_like_length_follow_each_other_by_difficulty(epoch_order, sign, count):
    selection = np.arange(count)
    sampler = ordered_sampler(epoch_order, selection, "group_by_length", fraction=0.4)
    for epoch in range(3):
        groups = sampler.order(epoch).reshape(4, 20)  # 80 samples are 20 steps of 4: 4 groups of 5 steps
        difficulty = DIFFICULTY[groups] * sign
        assert (difficulty[:-1].max(axis=1) <= difficulty[1:].min(axis=1)).all()
        assert (np.diff(LENGTHS[groups], axis=1) <= 0).all()
        assert len(np.unique(groups)) == 80
        assert (np.diff(difficulty, axis=1) < 0).any()  # by length and not by difficulty


def test_the_longest_sample_does_not_come_before_its_group():
    lengths = np.arange(POOL_SIZE)
    sampler = MIWVDataSampler(POOL_SIZE, 0.4, 7, "group_by_length", lengths, 4, "easy_to_hard")
    sampler.set_selection(np.arange(80), lengths[:80])  # longer is harder
    assert sampler.order(0).tolist() == np.arange(80).reshape(4, 20)[:, ::-1].ravel().tolist()


@pytest.mark.parametrize("epoch_order", ["easy_to_hard", "hard_to_easy"])
@pytest.mark.parametrize(
    ("difficulty", "words"),
    [
        (None, "needs to know how hard each selected sample is, but got no difficulty: give one number for each index"),
        ([1.0] * 19, r"one number for each of the 20 indices, but is of shape \(19,\)"),
        (np.ones((20, 2)), r"but is of shape \(20, 2\)"),
        ([1.0] * 18 + [float("nan")] * 2, "NaN or infinite for 2 of 20 samples: leave these out"),
        ([1.0] * 19 + [float("-inf")], "NaN or infinite for 1 of 20 samples"),
    ],
)
def test_an_impossible_difficulty_is_refused_and_the_old_selection_stays(epoch_order, difficulty, words):
    sampler = ordered_sampler(epoch_order)
    expected = sampler.order(0).tolist()
    with pytest.raises(ValueError, match=words):
        sampler.set_selection(LATER, difficulty)
    with pytest.raises(ValueError, match=words):
        sampler.switch_selection(LATER, 0, 4, difficulty)
    assert sampler.order(0).tolist() == expected


def test_a_shuffled_epoch_does_not_use_the_difficulty():
    sampler = sampler_of()
    sampler.set_selection(CHOSEN, [float("nan")])
    assert sampler.order(0).tolist() == sampler_of().order(0).tolist()


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
@pytest.mark.parametrize("drawn_before", [0, 1, 9, 20])
def test_a_sampler_that_is_made_again_within_an_epoch_gives_the_same_remaining_order(strategy, drawn_before):
    """As a resumed run does: it makes a sampler and puts the rounds of its checkpoint in force."""

    def begin():
        sampler = MIWVDataSampler(POOL_SIZE, 0.1, 7, strategy, LENGTHS, 4, "hard_to_easy")
        sampler.set_selection(EVEN[::-1], DIFFICULTY[EVEN[::-1]])
        sampler.switch_selection(np.arange(50), 2, 9, DIFFICULTY[:50])
        sampler.set_epoch(2)
        return sampler

    original, resumed = begin(), begin()
    running = iter(original)
    begun = list(itertools.islice(running, drawn_before))
    assert list(resumed) == begun + list(running)
    assert len(set(resumed)) == 20
    assert all(original.order(epoch).tolist() == resumed.order(epoch).tolist() for epoch in (0, 1, 3, 4, 5))


@pytest.mark.parametrize(
    ("strategy", "epoch_order"),
    [
        ("random", "shuffled"),
        ("sequential", "shuffled"),
        ("group_by_length", "shuffled"),
        ("random", "easy_to_hard"),
        ("group_by_length", "hard_to_easy"),
    ],
)
def test_shards_of_one_two_and_three_processes_hold_the_same_samples_in_a_step(strategy, epoch_order):
    sampler = MIWVDataSampler(POOL_SIZE, 0.24, 7, strategy, LENGTHS, 12, epoch_order)
    sampler.set_selection(np.arange(110), DIFFICULTY[:110])
    sampler.switch_selection(np.arange(50, 150), 1, 24, DIFFICULTY[50:150])
    for epoch in range(4):
        sampler.set_epoch(epoch)
        expected = sampler.order(epoch).reshape(4, 12).tolist()
        for processes in (1, 2, 3):
            for accumulation in (1, 2):
                batch = 12 // processes // accumulation
                assert steps(dealt(sampler, processes, batch), accumulation) == expected
                assert steps(dealt(sampler, processes, batch, skip=2 * accumulation), accumulation) == expected[2:]
