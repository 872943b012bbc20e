"""Which samples every process trains on in which step: accelerate's own shards, and launched Trainers."""

import itertools
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import TrainingArguments

from miwv_trainer import MIWVConfig, MIWVDataSampler, attach
from miwv_trainer.compat import is_at_least
from miwv_trainer.training.dataloader import check_batches, count_batch_samples, count_step_samples
from tests.helpers.batches import POOL_SIZE, drawn, steps
from tests.helpers.launch import ROOT, fork_ranks
from tests.helpers.tiny import save_tiny
from tests.helpers.trainers import by_epoch, noting_trainer, trained
from tests.launched.batches import train_cases

EFFECTIVE_BATCH = 12
PROCESSES = (1, 2, 3, 4, 6)
LENGTHS = np.random.default_rng(1).integers(5, 200, POOL_SIZE)


def sampler_of(count: int, strategy: Any = "random") -> MIWVDataSampler:
    """A sampler whose selection is every third sample or so."""
    sampler = MIWVDataSampler(POOL_SIZE, count / POOL_SIZE, 7, strategy, LENGTHS, EFFECTIVE_BATCH)
    sampler.set_selection(np.random.default_rng(2).permutation(POOL_SIZE)[:count])
    return sampler


@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
@pytest.mark.parametrize("split", [False, True])
def test_a_step_holds_the_same_samples_in_the_same_order_at_any_number_of_processes(strategy: str, split: bool) -> None:
    sampler = sampler_of(96, strategy)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected = sampler.order(epoch).reshape(8, EFFECTIVE_BATCH).tolist()
        for processes in PROCESSES:
            for accumulation in (n for n in (1, 2, 3, 4, 6, 12) if EFFECTIVE_BATCH % (n * processes) == 0):
                batch = EFFECTIVE_BATCH // accumulation // (1 if split else processes)
                ranks = drawn(sampler, processes, batch, split_batches=split)
                assert steps(ranks, accumulation) == expected, (processes, accumulation)
                # A resume in the middle of an epoch skips batches of each rank.
                rest = drawn(sampler, processes, batch, split_batches=split, skip=3 * accumulation)
                assert steps(rest, accumulation) == expected[3:], (processes, accumulation)
    assert len({tuple(sampler.order(epoch)) for epoch in range(2)}) == (1 if strategy == "sequential" else 2)


@pytest.mark.parametrize("count", [97, 100, 107, 5])
def test_a_last_batch_wraps_to_the_beginning_of_the_epoch_or_is_dropped(count: int) -> None:
    """docs/distributed.md tells it so."""
    sampler = sampler_of(count)
    order = sampler.order(0).tolist()
    for processes in PROCESSES[1:]:
        batch = EFFECTIVE_BATCH // processes
        full, rest = divmod(count, EFFECTIVE_BATCH)
        filled = steps(drawn(sampler, processes, batch), 1)
        again = order * EFFECTIVE_BATCH
        assert list(itertools.chain(*filled)) == order + (again[: EFFECTIVE_BATCH - rest])
        dropped = steps(drawn(sampler, processes, batch, drop_last=True), 1)
        assert list(itertools.chain(*dropped)) == order[: full * EFFECTIVE_BATCH]
    # One process repeats nothing: its last batch is smaller.
    assert list(itertools.chain(*steps(drawn(sampler, 1, EFFECTIVE_BATCH), 1))) == order


def arguments(processes: int, batch: int, drop_last: bool = False, **accelerator: Any) -> TrainingArguments:
    """Arguments as a process among several has them."""

    class OneOfMany(TrainingArguments):
        world_size = processes

    return OneOfMany(
        per_device_train_batch_size=batch,
        dataloader_drop_last=drop_last,
        accelerator_config=accelerator or None,
        gradient_accumulation_steps=2,
        use_cpu=True,
    )


def is_accepted(args: TrainingArguments, sampler: MIWVDataSampler) -> bool:
    try:
        check_batches(args, sampler)
    except ValueError as error:
        assert "even_batches=False" in str(error)
        return False
    return True


@pytest.mark.parametrize("split", [False, True])
def test_uneven_batches_are_refused_just_where_processes_would_wait_for_each_other(split: bool) -> None:
    refused = 0
    for processes in (1, 2, 3, 4):
        batch = EFFECTIVE_BATCH if split else 3
        for count in range(1, 40):
            sampler = sampler_of(count)
            args = arguments(processes, batch, even_batches=False, split_batches=split)
            ranks = drawn(sampler, processes, batch, even_batches=False, split_batches=split)
            is_even = len({len(batches) for batches in ranks}) == 1
            assert is_accepted(args, sampler) == is_even, (processes, count)
            refused += not is_even
            dropping = arguments(processes, 1, drop_last=True, even_batches=False)
            assert count < processes or is_accepted(dropping, sampler)
    assert refused > 20


def test_the_refusal_of_uneven_batches_counts_processes_and_samples() -> None:
    words = (
        r"`even_batches=False` leaves 2 of 4 processes without a last batch.*14 samples are selected, 2 more than "
        r"fill batches of 4\. Set `even_batches=True`, `dataloader_drop_last=True`, or a `fraction` that selects a "
        "multiple of 4"
    )
    with pytest.raises(ValueError, match=words):
        check_batches(arguments(4, 1, even_batches=False), sampler_of(14))


def test_a_batch_is_counted_over_processes_unless_it_is_split_between_them() -> None:
    assert (count_batch_samples(arguments(4, 8)), count_step_samples(arguments(4, 8))) == (32, 64)
    split = arguments(4, 8, split_batches=True)
    assert (count_batch_samples(split), count_step_samples(split)) == (8, 16)


def test_options_that_do_not_go_with_a_selection_are_refused_by_name(tmp_path: Path) -> None:
    config = MIWVConfig(fraction=0.5, embedder="tfidf")
    dispatching = noting_trainer(tmp_path, accelerator_config={"dispatch_batches": True})
    with pytest.raises(ValueError, match=r"`dispatch_batches=True` joins.*Leave it out of `accelerator_config`"):
        attach(dispatching, config)
    stateful = noting_trainer(tmp_path)
    stateful.accelerator.dataloader_config.use_stateful_dataloader = True
    with pytest.raises(ValueError, match=r"`use_stateful_dataloader=True` makes a state .*Set it to False"):
        attach(stateful, config)


@pytest.mark.skipif(not is_at_least("transformers", "5.2"), reason="transformers has other strategies from 5.2 on")
def test_strategies_that_a_sampler_does_not_follow_are_refused_by_name(tmp_path: Path) -> None:
    rebalancing = noting_trainer(tmp_path, train_sampling_strategy="batch_rebalance")
    with pytest.raises(
        ValueError, match=r'"batch_rebalance"` composes.*Set `train_sampling_strategy="group_by_length"'
    ):
        attach(rebalancing, MIWVConfig(fraction=0.5, embedder="tfidf"))
    # By hand, the sampler must follow the Trainer's strategy.
    sequential = arguments(1, 4)
    sequential.train_sampling_strategy = "sequential"
    words = "made with `strategy='random'`, but the Trainer has `train_sampling_strategy='sequential'`"
    with pytest.raises(ValueError, match=words):
        check_batches(sequential, sampler_of(12))


def test_the_trainers_own_arguments_know_no_stateful_dataloader() -> None:
    with pytest.raises(TypeError, match="use_stateful_dataloader"):
        TrainingArguments(accelerator_config={"use_stateful_dataloader": True})


@pytest.mark.parametrize("strategy", ["sequential", "group_by_length"])
def test_a_trainer_follows_its_strategy_within_the_selection(tmp_path: Path, strategy: str) -> None:
    trainer = noting_trainer(
        tmp_path,
        64,
        train_sampling_strategy=strategy,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    lengths = np.asarray([len(ids) for ids in trainer.train_dataset["input_ids"]])
    callback = attach(trainer, MIWVConfig(fraction=0.5, embedder="tfidf"))
    trainer.train()
    selection = callback.rounds[0].selection
    first, second = by_epoch()
    assert sorted(first) == sorted(second) == selection.tolist()
    if strategy == "sequential":
        assert first == second == selection.tolist()
        return
    assert first != second
    for positions in (first, second):
        # 32 samples are 8 steps of 4, and so 4 groups of 8 samples, each sorted.
        groups = lengths[positions].reshape(4, 8)
        assert lengths[positions[0]] == lengths[selection].max()
        assert (np.diff(groups[:, 1:], axis=1) <= 0).all()
        assert len(np.unique(lengths[positions])) > 8  # as many lengths as could be out of order


@pytest.fixture(scope="module")
def ranks_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, Any]]]:
    """By the number of processes, what each of them has seen in the cases of batches.py."""
    folder = save_tiny(tmp_path_factory.mktemp("model"))

    @cache
    def train(processes: int) -> list[dict[str, Any]]:
        output = tmp_path_factory.mktemp(f"on-{processes}")
        if processes == 1:
            return [train_cases(folder, output, processes)]
        done = fork_ranks(processes, ROOT / "tests" / "launched" / "batches.py", folder, output)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        ranks = [json.loads((output / f"rank-{rank}.json").read_text()) for rank in range(processes)]
        assert [(seen["rank"], seen["world_size"]) for seen in ranks] == [
            (rank, processes) for rank in range(processes)
        ]
        assert {name for seen in ranks for name in seen["wrappers"]} == {"DistributedDataParallel"}
        return ranks

    return train


# Three processes prove the same once more: `drawn` deals the batches of any number of them as accelerate does.
on_several_processes = pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])


def trained_steps(ranks: list[dict[str, Any]], case: str) -> list[list[int]]:
    """Over all ranks, the pool indices of each optimizer step of both epochs."""
    assert {json.dumps(seen[case]["selection"]) for seen in ranks} == {json.dumps(ranks[0][case]["selection"])}
    return steps([seen[case]["batches"] for seen in ranks], ranks[0][case]["accumulation"])


@on_several_processes
@pytest.mark.parametrize("case", ["plain", "accumulated", "split", "grouped", "sequential", "uneven but full"])
def test_launched_trainers_make_the_same_steps_as_one_process(
    ranks_of: Callable[[int], list[dict[str, Any]]], case: str, processes: int
) -> None:
    if case == "sequential" and not is_at_least("transformers", "5.2"):
        pytest.skip("transformers has no sequential strategy before 5.2")
    alone = trained_steps(ranks_of(1), case)
    assert [len(step) for step in alone] == [EFFECTIVE_BATCH] * 4  # two epochs of 24 samples
    for epoch in (alone[:2], alone[2:]):
        assert sorted(itertools.chain(*epoch)) == ranks_of(1)[0][case]["selection"]
    assert (alone[:2] == alone[2:]) == (case == "sequential")
    assert trained_steps(ranks_of(processes), case) == alone


@on_several_processes
def test_launched_trainers_fill_or_drop_a_last_batch(
    ranks_of: Callable[[int], list[dict[str, Any]]], processes: int
) -> None:
    ranks = ranks_of(processes)
    selection = ranks[0]["filled"]["selection"]
    assert len(selection) == 20
    for epoch in (trained_steps(ranks, "filled")[:2], trained_steps(ranks, "filled")[2:]):
        order = list(itertools.chain(*epoch))
        assert sorted(order[:20]) == selection
        assert order[20:] == order[:4]
    for step in trained_steps(ranks, "dropped"):
        assert len(set(step)) == EFFECTIVE_BATCH
        assert set(step) < set(selection)
    assert len(trained_steps(ranks, "dropped")) == 2  # one an epoch
    assert all(seen[case]["steps"] == seen[case]["max_steps"] for seen in ranks for case in ("filled", "dropped"))


@on_several_processes
def test_a_launched_trainer_refuses_batches_that_not_all_processes_get(
    ranks_of: Callable[[int], list[dict[str, Any]]], processes: int
) -> None:
    assert all("`even_batches=False` leaves" in seen["uneven"] for seen in ranks_of(processes))


def test_a_run_resumed_in_the_middle_of_an_epoch_goes_on_in_groups_of_like_length(tmp_path: Path) -> None:
    config = MIWVConfig(fraction=0.5, embedder="tfidf")

    def train(resume_from: str | None) -> list[list[int]]:
        options = {"train_sampling_strategy": "group_by_length", "save_strategy": "steps", "save_steps": 5}
        trainer = noting_trainer(tmp_path, 64, per_device_train_batch_size=4, **options)
        attach(trainer, config)
        trainer.train(resume_from_checkpoint=resume_from)
        return [positions for _, positions in trained]

    whole = train(None)
    assert len(whole) == 16
    assert train(str(tmp_path / "checkpoint-5")) == whole[5:]
