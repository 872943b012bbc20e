"""Rounds by scores of the user's own: what is forwarded, guarded, stored, read again and selected from."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from miwv_trainer import MIWVConfig, StoredRound, pool_from_rows, read_rounds, score_and_select, select_again
from miwv_trainer.cli.main import main
from miwv_trainer.data.own_columns import add_scores_of_column
from miwv_trainer.data.pool import Pool
from miwv_trainer.report.explanations import explain_selection
from miwv_trainer.rounds.stored_config import restore_config
from miwv_trainer.storage.store import Store
from tests.helpers import own_scores
from tests.helpers.held import scoring_forwards
from tests.helpers.own_scores import easiest_first, middle_miwv, shortest_first
from tests.helpers.selecting import select_highest
from tests.helpers.tiny import instruction_rows, save_tiny, tiny_model, tiny_tokenizer
from tests.helpers.tiny_rounds import exemplars_of, finished_round

COUNT = 24
QUALITY = np.float32(np.random.default_rng(0).permutation(COUNT))
QUALITY[3] = np.nan
ROWS = datasets.Dataset.from_list(
    [
        {**row, "quality": None if np.isnan(value) else float(value)}
        for row, value in zip(instruction_rows(COUNT), QUALITY, strict=True)
    ]
)
# The default embedder is on a hub that is out of reach: what embeds nothing does not need it.
NO_EMBEDDER = MIWVConfig(fraction=0.25)
EMBEDDED = MIWVConfig(fraction=0.25, embedder="tfidf")


@pytest.fixture(scope="module")
def pool() -> Pool:
    return add_scores_of_column(pool_from_rows(ROWS, tiny_tokenizer()), ROWS, "quality")


def a_round(pool: Pool, folder: Path, base: MIWVConfig = NO_EMBEDDER, **values: Any) -> StoredRound:
    given = {field.name: getattr(base, field.name) for field in dataclasses.fields(MIWVConfig)} | values
    changed = {name: value for name, value in given.items() if name in ("fraction", "embedder", *values)}
    return finished_round(tiny_model(), pool, Store(folder), MIWVConfig(**changed))


@pytest.mark.parametrize("values", [{"score_column": "quality"}, {"score": QUALITY}], ids=["column", "array"])
def test_given_numbers_select_without_a_forward_or_an_embedding(
    values: dict[str, Any], pool: Pool, tmp_path: Path
) -> None:
    model = tiny_model()
    seen = scoring_forwards(model)
    current = finished_round(model, pool, Store(tmp_path), MIWVConfig(fraction=0.25, **values))
    assert seen == [] and not list(current.folder.parent.glob("e*"))
    assert current.selection.tolist() == select_highest(QUALITY, 6).tolist()
    np.testing.assert_array_equal(current.column("score"), QUALITY)
    assert np.isnan(current.column("miwv")).all() and current.summary["unscorable"] == 1
    explained = explain_selection(current)
    why = "the column has no number for it" if "score_column" in values else "array of shape (24,) gives it no number"
    assert explained.phrases[explained.codes[3]] == f"unscorable: {why}"
    assert explained.phrases[explained.codes[current.selection[0]]] == "selected"
    assert explained.ranks[np.nanargmax(QUALITY)] == 1


def test_a_function_forwards_what_it_asks_for(pool: Pool, tmp_path: Path) -> None:
    shortest = a_round(pool, tmp_path / "none", score=shortest_first)
    assert shortest.summary["tokens_forwarded"] == 0
    assert shortest.selection.tolist() == select_highest(-pool.response_tokens, 6).tolist()
    easiest = a_round(pool, tmp_path / "zero", score=easiest_first, extra_losses="zero_shot")
    both = a_round(pool, tmp_path / "both", EMBEDDED, score=middle_miwv, extra_losses="both")
    plain = a_round(pool, tmp_path / "plain", EMBEDDED)
    assert 0 < easiest.summary["tokens_forwarded"] < both.summary["tokens_forwarded"]
    losses, miwv = plain.column("zero_shot_loss"), plain.column("miwv")
    np.testing.assert_allclose(easiest.column("zero_shot_loss"), losses, atol=1e-5)
    assert easiest.selection.tolist() == select_highest(-losses, 6).tolist()
    expected = np.where(pool.response_tokens % 2 == 1, np.nan, -np.abs(miwv - np.nanmedian(miwv)))
    assert both.selection.tolist() == select_highest(expected, 6).tolist()
    # A sample to which the function gives no number keeps the losses that were measured.
    np.testing.assert_array_equal(both.column("miwv"), miwv)
    assert np.isnan(both.column("score")).tolist() == (pool.response_tokens % 2 == 1).tolist()
    assert easiest.summary["config"]["score"] == "tests.helpers.own_scores:easiest_first"


GUARDS: dict[str, dict[str, Any]] = {
    "min_response_tokens": {"min_response_tokens": 8},
    "quantile_band": {"quantile_band": [0.0, 0.6]},
    "loss_band": {"loss_band": [0.0, 0.5], "extra_losses": "zero_shot"},
    "min_similarity": {"min_similarity": 0.3},
    "length_bands": {"length_bands": 3},
    "tokens": {"selection_budget": "tokens"},
    "diversity": {"diversity": "mmr"},
    "near-duplicates": {"max_selected_similarity": 0.4},
}


@pytest.mark.parametrize("values", GUARDS.values(), ids=GUARDS)
def test_guards_and_budgets_work_with_a_score_of_ones_own(values: dict[str, Any], pool: Pool, tmp_path: Path) -> None:
    """As with any other score: MIWV itself, given as an array, selects what MIWV selects."""
    measured = a_round(pool, tmp_path / "measured", EMBEDDED, **values)
    own = a_round(pool, tmp_path / "own", EMBEDDED, score=measured.column("score"), **values)
    assert own.selection.tolist() == measured.selection.tolist()
    assert own.summary["left_out"] == measured.summary["left_out"]
    assert own.summary["tokens_forwarded"] < measured.summary["tokens_forwarded"]
    plain = a_round(pool, tmp_path / "plain", EMBEDDED, score=measured.column("score"))
    assert own.selection.tolist() != plain.selection.tolist()


def test_a_function_that_writes_into_what_it_gets_changes_its_own_numbers_only(pool: Pool, tmp_path: Path) -> None:
    asked = {"extra_losses": "both", "fraction": 0.25}
    tokens = pool.response_tokens.copy()
    expected = a_round(pool, tmp_path / "pure", EMBEDDED, score=own_scores.clipped, **asked)
    found = a_round(pool, tmp_path / "in_place", EMBEDDED, score=own_scores.clipped_in_place, **asked)
    np.testing.assert_array_equal(pool.response_tokens, tokens)
    assert len(np.unique(tokens)) > 2 and tokens.max() > own_scores.MOST_TOKENS
    for name in ("response_tokens", "zero_shot_loss", "one_shot_loss", "similarity", "exemplar", "score", "selected"):
        np.testing.assert_array_equal(found.column(name), expected.column(name))
    # What is read from the disk cannot be written to.
    again = a_round(pool, tmp_path / "in_place", EMBEDDED, score=own_scores.clipped_in_place, **asked)
    assert again.was_there
    chosen = select_again(again, MIWVConfig(score=own_scores.clipped_in_place, fraction=0.25)).selection
    assert chosen.tolist() == expected.selection.tolist()


def test_a_round_is_read_again_only_while_its_numbers_are_the_same(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_reused(**values: Any) -> bool:
        return a_round(pool, tmp_path, EMBEDDED, **values).was_there

    other = QUALITY.copy()
    other[0] += 0.5
    assert [is_reused(score=QUALITY), is_reused(score=QUALITY), is_reused(score=other)] == [False, True, False]
    asked = {"score": own_scores.easiest_first, "extra_losses": "zero_shot"}
    assert [is_reused(**asked), is_reused(**asked)] == [False, True]

    # Its name is the same, and its lines are others.
    def easiest_first(measured: Any) -> Any:
        return measured.zero_shot_loss

    monkeypatch.setattr(easiest_first, "__module__", own_scores.__name__)
    monkeypatch.setattr(easiest_first, "__qualname__", "easiest_first")
    changed = a_round(pool, tmp_path, EMBEDDED, score=easiest_first, extra_losses="zero_shot")
    assert changed.summary["config"]["score"] == "tests.helpers.own_scores:easiest_first"
    assert not changed.was_there
    assert changed.selection.tolist() == select_highest(changed.column("zero_shot_loss"), 6).tolist()


@pytest.mark.parametrize("name", ["too_many", "in_vain"])
def test_a_function_that_fails_leaves_the_losses_for_the_next_attempt(name: str, pool: Pool, tmp_path: Path) -> None:
    function, store = getattr(own_scores, name), Store(tmp_path)
    with pytest.raises(ValueError, match=f"`score` tests.helpers.own_scores:{name}"):
        finished_round(tiny_model(), pool, store, MIWVConfig(score=function, extra_losses="zero_shot"))
    assert list(store.journal_folder(0).glob("rank-*.jsonl"))


def test_a_stored_round_is_selected_from_by_its_own_and_by_other_scores(pool: Pool, tmp_path: Path) -> None:
    by_column = a_round(pool, tmp_path / "column", score_column="quality")
    by_function = a_round(pool, tmp_path / "function", EMBEDDED, score=middle_miwv, extra_losses="both")
    for stored in (by_column, by_function):
        config = restore_config(stored, fraction=0.125)
        assert select_again(stored, config).selection.tolist() == select_highest(stored.column("score"), 3).tolist()
        assert restore_config(stored, score="longest").score == "longest"
        again = select_again(stored, MIWVConfig(fraction=0.125, score=QUALITY))
        assert again.selection.tolist() == select_highest(QUALITY, 3).tolist()
        named = MIWVConfig(fraction=0.125, score_column="quality")
        assert select_again(stored, named, ROWS).selection.tolist() == select_highest(QUALITY, 3).tolist()
    with pytest.raises(ValueError, match="ranked by `score_column` 'quality', .* give that as `rows`"):
        select_again(by_function, MIWVConfig(score_column="quality"))
    shortest = select_again(by_function, MIWVConfig(fraction=0.125, score=shortest_first))
    assert shortest.selection.tolist() == select_highest(-pool.response_tokens, 3).tolist()


def test_a_pool_without_the_column_is_told_what_to_give(tmp_path: Path) -> None:
    bare = pool_from_rows(ROWS, tiny_tokenizer())
    with pytest.raises(ValueError, match="`score_column` is 'quality', but the pool has no numbers of it"):
        score_and_select(tiny_model(), bare, MIWVConfig(score_column="quality"), tmp_path)
    with pytest.raises(ValueError, match="must give one number for each of the pool's 24 samples"):
        score_and_select(tiny_model(), bare, MIWVConfig(score=np.zeros(9)), tmp_path)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_a_column_that_is_empty_selects_nothing(pool: Pool, tmp_path: Path) -> None:
    empty = np.full(COUNT, np.nan)
    with pytest.raises(ValueError, match="No sample of the pool may be selected: not one has a score"):
        finished_round(tiny_model(), pool, Store(tmp_path), MIWVConfig(score=empty))
    # A function has no losses by itself, and is told what measures them.
    by_ifd = '`response_loss` is measured by `score="ifd"` alone: score the pool so, and select from that round'
    for extra, words in (
        ("none", "NaN as `zero_shot_loss`, `one_shot_loss` and `response_loss`, .*"
         f': score the pool with `extra_losses="zero_shot"`, or "both" for exemplars and MIWV. {by_ifd}'),
        ("zero_shot", "middle_miwv gave NaN for each of them. It got NaN as `one_shot_loss` and `response_loss`, .* or "
         f'"both" for exemplars and MIWV. {by_ifd}'),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"not one has a score. .*{words}"):
            config = MIWVConfig(score=middle_miwv, extra_losses=extra, embedder="tfidf")
            score_and_select(tiny_model(), pool, config, tmp_path / extra)
    assert exemplars_of(tiny_model(), pool, Store(tmp_path), MIWVConfig(score=empty)).indices.tolist() == [-1] * COUNT


def test_a_function_that_gives_no_number_is_told_of_the_losses_that_it_lacks_and_of_no_other(
    pool: Pool, tmp_path: Path
) -> None:
    by_ifd = a_round(pool, tmp_path / "ifd", EMBEDDED, score="ifd", extra_losses="both")
    with pytest.raises(ValueError, match=r"own_scores:nothing gave NaN for each of them\.$"):
        select_again(by_ifd, MIWVConfig(score=own_scores.nothing))
    by_both = a_round(pool, tmp_path / "both", EMBEDDED, score="miwv")
    words = (
        r"It got NaN as `response_loss`, which no forward has measured: `response_loss` is measured by `score=\"ifd\"`"
    )
    with pytest.raises(ValueError, match=words):
        select_again(by_both, MIWVConfig(score=own_scores.nothing))
    ratio = by_ifd.column("zero_shot_loss") / by_ifd.column("response_loss")
    ratio[ratio > 1] = np.nan
    chosen = select_again(by_ifd, MIWVConfig(fraction=0.25, score=own_scores.ratio_of_losses)).selection
    assert chosen.tolist() == select_highest(ratio, 6).tolist()


def test_a_column_goes_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny(tmp_path / "model")
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "pool.jsonl").write_text("\n".join(lines) + "\n")
    model, dataset, output = tmp_path / "model", tmp_path / "pool.jsonl", tmp_path / "out"

    def run(typed: str, status: int = 0) -> str:
        assert main(typed.split()) == status
        told = capsys.readouterr()
        return told.err if status else told.out

    run(f"score --model {model} --dataset {dataset} --output {output} --fraction 0.25 --score-column quality")
    highest = select_highest(QUALITY, 6).tolist()
    assert (output / "selected.jsonl").read_text().splitlines() == [lines[index] for index in highest]
    assert read_rounds(output)[0].summary["config"]["score_column"] == "quality"
    # Without the pool: the round holds the numbers.
    printed = run(f"select --scores {output} --fraction 0.125")
    assert [int(line) for line in printed.split()] == select_highest(QUALITY, 3).tolist()
    run(f"select --scores {output} --dataset {dataset} --fraction 0.25 --format dataset --to {tmp_path / 'chosen'}")
    card = (tmp_path / "chosen" / "README.md").read_text()
    assert "6 samples of pool.jsonl by quality" in card and "| ranked by | the pool's column `quality`, highest" in card
    assert f"6, quality {QUALITY[highest].min():.4f} and above" in card
    told = run(f"report --run {output} --dataset {dataset}")
    assert "Round 0 has no MIWV: its score is quality." in told
    page = (output / "report" / "index.html").read_text()
    assert "Distribution of quality" in page and "<dt>score_column</dt><dd>quality</dd>" in page
    assert (output / "report" / "scores.png").is_file()

    assert "the dataset has the columns instruction" in run(
        f"score --model {model} --dataset {dataset} --output {output} --score-column grade", status=2
    )
    assert "`--score-column` 'grade', which is a column of the pool: give that as `--dataset`" in run(
        f"select --scores {output} --fraction 0.1 --score-column grade", status=2
    )
    assert "which holds 'Explain" in run(
        f"score --model {model} --dataset {dataset} --output {output} --score-column instruction", status=2
    )
