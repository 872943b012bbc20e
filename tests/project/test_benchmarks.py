"""The scoring benchmark on a tiny random model: its baselines, its counts, its table."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer

from benchmarks import layouts
from benchmarks.cases import Case, draw_random_pool, parse_llama_config, read_pool
from benchmarks.layouts import LAYOUTS, count_work, forward_plain_rows, plan_case_trees, prepare
from benchmarks.measure import measure
from benchmarks.scoring import main
from benchmarks.shapes import make_random_model
from benchmarks.table import Line, compare_losses, make_cells
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.build import render
from miwv_trainer.data.pool import NO_EXEMPLAR, Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.losses import Losses
from miwv_trainer.scoring.tree_masks import make_mask
from miwv_trainer.scoring.trees import make_tree_row
from tests.helpers.tiny import instruction_rows, save_tiny, tiny_config, tiny_model

SAMPLES = 8
PREAMBLE = 2
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def pool_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in instruction_rows(SAMPLES)), encoding="utf-8")
    return str(path)


@pytest.fixture
def arguments(model_folder: str, pool_file: str) -> list[str]:
    common = ["--model", model_folder, "--pool", pool_file, "--device", "cpu", "--tokens-per-row", "200"]
    return [*common, "--random-llama", json.dumps(SHAPE)]


def table(printed: str) -> dict[str, dict[str, str]]:
    """The printed table: for each layout, column title to cell."""
    lines = printed.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("layout "))
    titles = lines[at].split("  ")
    names = [title.strip() for title in titles if title.strip()]
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[at + 1 :]]
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows[: rows.index([])]}


def crowded_case() -> Case:
    """Samples of 9 to 16 tokens, half of each response; all but one behind sample 0, and one behind sample 5."""
    lengths = np.arange(9, 17)
    offsets = np.cumsum([0, *lengths])
    tokens = np.random.default_rng(0).integers(512, size=offsets[-1])
    masks = [np.arange(length) >= length // 2 for length in lengths]
    pool = Pool(np.arange(PREAMBLE), tokens, np.concatenate(masks), offsets)
    model = tiny_model(tiny_config(hidden_size=64))
    config = MIWVConfig(tokens_per_row=60, tokens_per_batch=64)
    return Case(model, pool, np.asarray([5, 0, 0, 0, 0, 0, 0, 0]), config, World(0, 1, torch.device("cpu")))


def test_the_table_has_every_layout_with_its_tokens_and_equal_losses(
    arguments: list[str], model_folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "RESULTS.md"
    options = ["--samples", str(SAMPLES), "--repeat", "2", "--peak-tflops", "1", "--output", str(output)]
    assert main([*arguments, *options]) == 0
    printed = capsys.readouterr().out
    found = table(printed)
    assert tuple(found) == LAYOUTS

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    lengths = [len(ids) for ids, _ in render(instruction_rows(SAMPLES), tokenizer)]
    tokens = {name: int(row["tokens"]) for name, row in found.items()}
    # Alone, each sample is forwarded once; behind an exemplar, itself and another one, and the preamble once less.
    assert 2 * sum(lengths) < tokens["row_unpadded"] < 2 * sum(lengths) + SAMPLES * max(lengths)
    assert tokens["row_unpadded"] <= min(tokens["padded"], tokens["row"])
    assert tokens["padded"] == tokens["padded_full"]
    assert tokens["ceiling"] == tokens["tree"] < tokens["row_unpadded"]

    notes = [line.split(" ") for line in printed.splitlines() if line.startswith("Losses of ")]
    assert [note[2] for note in notes] == ["row_unpadded", "padded_full", "padded", "tree"]
    assert all(note[4] == "row:" and float(note[7].rstrip(",")) < 1e-4 for note in notes)
    assert all(note[11] == "1.000000" for note in notes)

    markdown = output.read_text(encoding="utf-8")
    assert markdown.count("\n| ") == 1 + len(LAYOUTS)
    assert f"| tree | {found['tree']['seconds']} | {tokens['tree']} |" in markdown
    assert "- command: `python -m benchmarks.scoring --model " in markdown


def test_row_tokens_are_those_of_both_sequences_counted_by_hand() -> None:
    case = crowded_case()
    lengths = np.arange(9, 17)
    zero_shot = (PREAMBLE + lengths).sum()
    one_shot = zero_shot + lengths[0] * 7 + lengths[5]
    with leave_no_trace(case.model):
        losses, padded = prepare("row_unpadded", case)(), prepare("row", case)()
    assert losses is not None and padded is not None
    assert losses.tokens_forwarded == count_work("row_unpadded", case).tokens == zero_shot + one_shot
    # Eight samples are padded to the longest of them, 16 without and 9 + 16 behind an exemplar.
    assert padded.tokens_forwarded == count_work("row", case).tokens == 8 * (PREAMBLE + 16) + 8 * (PREAMBLE + 9 + 16)
    np.testing.assert_allclose(padded.miwv, losses.miwv, atol=1e-5)


@pytest.mark.parametrize("layout", ["padded_full", "padded", "tree"])
def test_planned_tokens_are_forwarded_tokens_and_losses_are_those_of_single_rows(layout: str) -> None:
    case = crowded_case()
    with leave_no_trace(case.model):
        expected, losses = prepare("row", case)(), prepare(layout, case)()
    assert expected is not None and losses is not None
    assert losses.tokens_forwarded == count_work(layout, case).tokens
    assert np.isfinite(expected.miwv).all() and np.ptp(expected.miwv) > 0.1
    np.testing.assert_allclose(losses.miwv, expected.miwv, atol=1e-4)
    np.testing.assert_allclose(losses.zero_shot, expected.zero_shot, atol=1e-4)


def test_row_losses_are_the_mean_negative_log_likelihood_of_the_response() -> None:
    case = crowded_case()
    with leave_no_trace(case.model):
        losses = prepare("row", case)()
        # Sample 2 has 11 tokens, of which the last 6 are response; its exemplar is sample 0.
        ids = np.concatenate([case.pool.preamble, case.pool.sample(0), case.pool.sample(2)])
        log_probs = case.model(torch.as_tensor(ids)[None]).logits[0].log_softmax(-1)
    by_hand = -np.mean([float(log_probs[at - 1, ids[at]]) for at in range(len(ids) - 6, len(ids))])
    assert losses is not None
    assert losses.one_shot[2] == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operations_of_the_weights_are_those_that_torch_counts(layout: str) -> None:
    case = crowded_case()
    run = prepare(layout, case)
    forwards: list[int] = []
    case.model.register_forward_hook(lambda *_: forwards.append(1))
    with leave_no_trace(case.model), FlopCounterMode(display=False) as counter:
        run()
    planned = count_work(layout, case)
    if layout in ("padded", "tree"):
        # Their first forward, of four tokens, checks the head on one position; and each lets one position go on.
        planned = replace(planned, tokens=planned.tokens + 4, positions=planned.positions + 1 + len(forwards))
    norms = sum(parameter.numel() for parameter in case.model.parameters() if parameter.ndim == 1)
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm] + 2 * planned.tokens * norms
    assert replace(planned, pairs=0).flops(case.model) == counted
    per_pair = 2 * 2 * 64 * 2  # scores and sum, multiply and add, width, layers
    assert planned.flops(case.model) == counted + planned.pairs * per_pair


def test_pairs_are_those_that_the_masks_leave() -> None:
    case = crowded_case()
    rows = [make_tree_row(row, case.pool) for row in plan_case_trees(case)]
    assert len(rows) > 1
    assert count_work("tree", case).pairs == sum(int(make_mask([row], torch.device("cpu")).sum()) for row in rows)
    lengths = np.arange(9, 17) + PREAMBLE
    exemplars = np.asarray([14, *[9] * 7])
    assert count_work("row_unpadded", case).pairs == sum(
        sum(range(1, n + 1)) for n in [*lengths, *(lengths + exemplars)]
    )


@pytest.mark.parametrize(("at_once", "shapes"), [(1, [(1, 60)] * 4 + [(1, 10)]), (3, [(3, 60), (1, 60), (1, 10)])])
def test_the_ceiling_forwards_as_many_tokens_and_positions_as_it_is_given(
    at_once: int, shapes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "CEILING_ROW", 60)
    case = replace(crowded_case(), config=MIWVConfig(tokens_per_batch=60 * at_once))
    positions, seen = [], []
    hook = case.model.lm_head.register_forward_hook(
        lambda module, args, output: positions.append(args[0].shape[0] * args[0].shape[1])
    )
    inner = case.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((tuple(kwargs["input_ids"].shape), kwargs.get("attention_mask"))),
        with_kwargs=True,
    )
    with leave_no_trace(case.model):
        forward_plain_rows(case, tokens=250, positions=101)
    hook.remove()
    inner.remove()
    assert seen == [(shape, None) for shape in shapes]
    assert sum(positions) == 101


def test_ratios_are_those_of_the_seconds_shown() -> None:
    losses = Losses(np.zeros(2, np.float32), np.asarray([1, 2], np.float32), 300)
    lines = [
        Line("row", 12.0, 300, 3e12, 2**20, losses),
        Line("tree", 4.0, 200, 2e12, None, losses),
        Line("ceiling", 3.0, 200, 2e12, 2**21, None),
    ]
    titles, row, tree, ceiling = make_cells(lines, peak_tflops=1.0)
    assert titles[0] == "layout" and titles[-1] == "of peak FLOP/s"
    assert row == ["row", "12.00", "300", "25", "1.00", "25%", "1 MiB", "25.0%"]
    assert tree == ["tree", "4.00", "200", "50", "3.00", "75%", "-", "50.0%"]
    assert ceiling == ["ceiling", "3.00", "200", "67", "4.00", "100%", "2 MiB", "66.7%"]
    assert make_cells(lines[1:2])[1][4:] == ["-", "-", "-"]


def test_other_losses_are_told() -> None:
    row = Losses(np.zeros(3, np.float32), np.asarray([1, 2, 3], np.float32), 1)
    wrong = Losses(np.zeros(3, np.float32), np.asarray([3, 2, 1], np.float32), 1)
    fewer = Losses(np.zeros(3, np.float32), np.asarray([1, 2, np.nan], np.float32), 1)
    lines = [Line(name, 1.0, 1, 1.0, None, losses) for name, losses in (("a", wrong), ("row", row), ("b", fewer))]
    assert compare_losses(lines) == [
        "Losses of a against row: largest difference 2, correlation of MIWV -1.000000 (3 samples).",
        "Losses of b against row: DIFFERENT SAMPLES ARE SCORED (1 in one of the two only).",
    ]
    assert "not compared" in compare_losses(lines[:1])[0]


def test_more_samples_than_the_pool_holds_with_lengths_only(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*arguments, "--lengths-only", "--samples", "30", "--layouts", "padded,tree,ceiling"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "pool: 30 random tokens in the lengths of pool.jsonl" in printed
    assert tuple(table(printed)) == ("padded", "tree", "ceiling")
    assert "Losses of tree against padded: largest difference" in printed and "(30 samples)" in printed


def test_random_samples_keep_the_lengths_and_the_crowding_of_those_they_are_drawn_from() -> None:
    pool = crowded_case().pool
    exemplars = np.asarray([5, 0, 0, 0, 0, 0, 0, NO_EXEMPLAR])
    generator = np.random.default_rng(0)
    source = np.concatenate([np.arange(8), generator.integers(8, size=500)])
    drawn, new_exemplars = draw_random_pool(pool, exemplars, source, 40, generator)
    assert drawn.lengths.tolist() == pool.lengths[source].tolist()
    assert drawn.response_tokens.tolist() == pool.response_tokens[source].tolist()
    assert drawn.tokens.max() < 40 and len(np.unique(drawn.tokens)) == 40
    has_one = exemplars[source] != NO_EXEMPLAR
    assert (new_exemplars[~has_one] == NO_EXEMPLAR).all()
    assert (source[new_exemplars[has_one]] == exemplars[source][has_one]).all()
    # Not all behind one copy of it.
    assert len(np.unique(new_exemplars[has_one])) > 60


def test_peak_memory_counts_what_a_run_takes_and_gives_back() -> None:
    def take() -> None:
        torch.ones(2**24)  # 64 MiB of float32

    measured = measure(take, torch.device("cpu"))
    if measured.peak_bytes is None:
        pytest.skip("this system does not tell the peak")
    assert 60 * 2**20 < measured.peak_bytes < 100 * 2**20
    # The peak of an earlier run is forgotten.
    again = measure(lambda: None, torch.device("cpu")).peak_bytes
    assert again is not None and again < 8 * 2**20


def test_a_random_llama_is_7b_by_default_and_takes_overrides() -> None:
    config = parse_llama_config("{}")
    shape = (config.hidden_size, config.num_hidden_layers, config.intermediate_size, config.vocab_size)
    assert shape == (4096, 32, 11008, 32000)
    model = make_random_model(parse_llama_config(json.dumps(SHAPE)), "bfloat16", torch.device("cpu"))
    assert model.dtype == torch.bfloat16 and model.lm_head.weight.shape == (512, 32)
    assert model.lm_head.weight.detach().float().std().item() == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize(
    "extra, words",
    [
        (
            ["--layouts", "row,rows"],
            "`--layouts` must be some of row, row_unpadded, padded_full, padded, tree, ceiling, segments, blocks, "
            "mask, varlen, but got 'rows'",
        ),
        (["--shape", "mistral"], "`--shape` and `--random-llama` are two random models: give one of them"),
        (["--samples", "1"], "`--samples` must be at least 2, but got 1"),
        (["--repeat", "0"], "`--repeat` must be at least 1, but got 0"),
        (["--seed", "-1"], "`--seed` must be at least 0, but got -1"),
        (["--peak-tflops", "0"], "`--peak-tflops` must be above 0, but got 0.0"),
        (["--output", "no/such/folder.md"], "`--output` must be a file in a folder that exists"),
        (["--samples", "9"], "`--samples` is 9, but the pool holds 8: give at most so many, or `--lengths-only`"),
        (["--pool", "nowhere.jsonl"], "There is no file 'nowhere.jsonl'"),
        (["--random-llama", "{"], "`--random-llama` must be a JSON object, but '{' is no JSON"),
        (["--random-llama", "[1]"], "`--random-llama` must be a JSON object such as {}, but got '[1]'"),
        (["--random-llama", '{"width": 3}'], "has keys that LlamaConfig does not: width. Allowed are its own, such as"),
        (["--random-llama", json.dumps({**SHAPE, "vocab_size": 50})], "the model's vocabulary has 50 entries"),
        (["--random-llama", json.dumps({**SHAPE, "max_position_embeddings": 10})], "Not one of the 8 samples drawn"),
        (["--embedder", "model"], '`--embedder` must be "tfidf" or a sentence-transformers name or folder'),
    ],
)
def test_bad_arguments_are_told_in_one_line(
    arguments: list[str], extra: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--samples", str(SAMPLES), *extra]) == 2
    assert words in capsys.readouterr().err


def test_a_missing_default_pool_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.cases.DEFAULT_POOL", tmp_path / "alpaca_gpt4_1k.jsonl.gz")
    with pytest.raises(FileNotFoundError, match="The default pool, alpaca_gpt4_1k.jsonl.gz, is not beside .*--pool"):
        read_pool(None)
