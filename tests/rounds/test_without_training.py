"""Scoring and selecting from Python: the same round as the command line makes, and selections from stored columns."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from filelock import FileLock, Timeout

from miwv_trainer import (
    MIWVConfig,
    StoredRound,
    __version__,
    pool_from_rows,
    read_rounds,
    score_and_select,
    select_again,
)
from miwv_trainer.cli.main import main
from miwv_trainer.selection.scores import SCORES
from miwv_trainer.storage.stored_round import HASHES
from tests.helpers.own_scores import easiest_first
from tests.helpers.tiny import instruction_rows, save_tiny, tiny_model, tiny_tokenizer

ROWS = datasets.Dataset.from_list([{**row, "task": "ab"[index % 2]} for index, row in enumerate(instruction_rows(24))])
CONFIG = MIWVConfig(fraction=0.25, embedder="tfidf")


def is_free(output: Path) -> bool:
    """Whether another object could claim the folder; a second lock on the file shuts out the first."""
    lock = FileLock(output / "miwv" / "in-use.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    return True


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scored")


@pytest.fixture(scope="module")
def scored(output: Path) -> StoredRound:
    return score_and_select(tiny_model(), pool_from_rows(ROWS, tiny_tokenizer()), CONFIG, output)


def test_a_mistyped_embedder_is_refused_before_the_folder_is_touched(tmp_path: Path) -> None:
    pool = pool_from_rows(ROWS, tiny_tokenizer())
    with pytest.raises(ValueError, match="Unknown embedder: 'modell' is no folder here. Did you mean 'model'"):
        score_and_select(tiny_model(), pool, MIWVConfig(embedder="modell"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pool_is_scored_as_the_command_line_scores_it(scored: StoredRound, output: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    typed = f"score --model {model} --dataset {tmp_path / 'pool.jsonl'} --output {tmp_path / 'out'} --fraction 0.25"
    assert main([*typed.split(), "--embedder", "tfidf"]) == 0
    (other,) = read_rounds(tmp_path / "out")
    assert other.scores.equals(scored.scores)
    assert other.summary["fingerprint"] == scored.summary["fingerprint"]
    assert other.summary["library"] == scored.summary["library"] == __version__
    assert [each.scores for each in read_rounds(output)] == [scored.scores]
    assert is_free(output)


def test_the_same_call_reads_what_it_has_scored(scored: StoredRound, output: Path) -> None:
    again = score_and_select(tiny_model(), pool_from_rows(ROWS, tiny_tokenizer()), CONFIG, str(output))
    assert again.was_there and not scored.was_there
    assert again.scores == scored.scores


def test_a_call_that_fails_leaves_the_folder_free(tmp_path: Path) -> None:
    config = MIWVConfig(embedder="tfidf", min_response_tokens=999)
    with pytest.raises(ValueError, match="min_response_tokens=999 leaves out 24"):
        score_and_select(tiny_model(), pool_from_rows(ROWS, tiny_tokenizer()), config, tmp_path)
    assert is_free(tmp_path)


def test_a_folder_that_is_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "miwv").mkdir()
    with FileLock(tmp_path / "miwv" / "in-use.lock"):
        assert not is_free(tmp_path)
        with pytest.raises(RuntimeError, match="Another run is writing to"):
            score_and_select(tiny_model(), pool_from_rows(ROWS, tiny_tokenizer()), CONFIG, tmp_path)


def test_groups_of_a_pool_that_has_none_are_refused(tmp_path: Path) -> None:
    pool, config = pool_from_rows(ROWS, tiny_tokenizer()), MIWVConfig(embedder="tfidf", group_column="task")
    with pytest.raises(ValueError, match="`group_column` is 'task', but the pool has no groups. Score it without"):
        score_and_select(tiny_model(), pool, config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_selection_of_the_same_scores(scored: StoredRound) -> None:
    miwv, tokens = scored.column("miwv"), scored.column("response_tokens")
    by_miwv = np.argsort(-miwv, kind="stable")
    assert select_again(scored, CONFIG).selection.tolist() == scored.selection.tolist() == sorted(by_miwv[:6].tolist())
    assert select_again(scored, MIWVConfig(fraction=0.5)).selection.tolist() == sorted(by_miwv[:12].tolist())
    lowest = select_again(scored, MIWVConfig(fraction=0.25, score="low_miwv", min_response_tokens=4))
    enough = [index for index in by_miwv[::-1] if tokens[index] >= 4]
    assert lowest.selection.tolist() == sorted(enough[:6])
    assert lowest.left_out == {"min_response_tokens=4": int((tokens < 4).sum())}


def test_random_draws_follow_the_seed(scored: StoredRound) -> None:
    drawn = [
        select_again(scored, MIWVConfig(score="random", fraction=0.25, sampler_seed=seed)).selection.tolist()
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("values", [{"score": "random"}, {"selection": "sample", "temperature": 4.0}])
def test_draws_of_another_seed_are_not_read_from_the_folder(values: dict[str, Any], tmp_path: Path) -> None:
    pool = pool_from_rows(ROWS, tiny_tokenizer())

    def scored_with(seed: int) -> StoredRound:
        config = MIWVConfig(fraction=0.25, embedder="tfidf", sampler_seed=seed, **values)
        found = score_and_select(tiny_model(), pool, config, tmp_path)
        assert found.selection.tolist() == select_again(found, config).selection.tolist()
        return found

    first, same, other = scored_with(0), scored_with(0), scored_with(1)
    assert [first.was_there, same.was_there, other.was_there] == [False, True, False]
    assert first.selection.tolist() == same.selection.tolist() != other.selection.tolist()


def test_groups_are_those_of_the_rows(scored: StoredRound) -> None:
    config = MIWVConfig(fraction=0.25, group_column="task")
    chosen = select_again(scored, config, ROWS).selection
    assert [ROWS[int(index)]["task"] for index in chosen].count("a") == 3
    with pytest.raises(ValueError, match="as `group_column` 'task' says, .* of the pool: give that as `rows`"):
        select_again(scored, config)
    words = rf"`rows` has {len(ROWS) - 1} rows, but .* holds scores of {len(ROWS)} samples: give the dataset that was"
    with pytest.raises(ValueError, match=words):
        select_again(scored, config, ROWS.select(range(1, len(ROWS))))


def test_a_pool_of_rows_has_the_hashes_that_its_round_stores(scored: StoredRound) -> None:
    hashes = pool_from_rows(ROWS.select(range(len(ROWS))[::-1]), tiny_tokenizer()).hashes
    assert hashes is not None and hashes.from_columns and scored.summary["texts_from"] == "columns"
    for name, own in zip(HASHES, (hashes.ids, hashes.text, hashes.words, hashes.answer), strict=True):
        assert scored.column(name).tolist() == own.tolist()[::-1]
    assert len(set(hashes.ids.tolist())) == len(set(hashes.text.tolist())) == len(ROWS)


def test_embeddings_that_are_gone_are_named_with_what_needs_them(scored: StoredRound, tmp_path: Path) -> None:
    found = select_again(scored, MIWVConfig(fraction=0.25, diversity="facility_location"))
    assert len(found.selection) == 6
    alone = score_and_select(
        tiny_model(), pool_from_rows(ROWS, tiny_tokenizer()), MIWVConfig(score="longest"), tmp_path
    )
    for config, words in (
        (
            MIWVConfig(diversity="mmr"),
            "by which `diversity` and `max_selected_similarity` choose. Score the pool again",
        ),
        (
            MIWVConfig(preset="guarded"),
            "which `max_selected_similarity` needs, set by the `preset` 'guarded'. Score the pool again",
        ),
        (MIWVConfig(preset="guarded", diversity="mmr"), "by which `diversity` and `max_selected_similarity` choose"),
    ):
        with pytest.raises(
            FileNotFoundError, match=re.escape(f"There are no embeddings in {tmp_path / 'miwv'}, {words}")
        ):
            select_again(alone, config)
    assert alone.summary["layout"] == "none"


@pytest.mark.parametrize("has", ["random", "zero_shot_loss", "ifd", "miwv"])
def test_losses_that_a_round_lacks_are_named_for_every_score(has: str, tmp_path: Path) -> None:
    measured = {"random": set(), "zero_shot_loss": {"zero"}, "ifd": {"zero", "response"}, "miwv": {"zero", "one"}}[has]
    needed = {"zero": "zero-shot losses", "one": "one-shot losses", "response": "losses of responses alone"}
    pool, config = pool_from_rows(ROWS, tiny_tokenizer()), MIWVConfig(score=has, embedder="tfidf", fraction=0.25)
    scored = score_and_select(tiny_model(), pool, config, tmp_path)
    for name, record in SCORES.items():
        if not record.losses:
            continue
        asked = {each.removesuffix("_shot") for each in record.losses}
        missing = [words for each, words in sorted(needed.items()) if each in asked - measured]
        config = MIWVConfig(score=name, fraction=0.25)
        if not missing:
            assert len(select_again(scored, config).selection)
            continue
        words = (
            f"have no {' and '.join(missing)}, which `score={name!r}` needs: they were made with `score={has!r}`. "
            f"Score the pool again with `score={name!r}`, or"
        )
        with pytest.raises(ValueError, match=re.escape(words)):
            select_again(scored, config)
    if has == "random":
        with pytest.raises(ValueError, match="have no zero-shot losses, .* again with `extra_losses='zero_shot'`"):
            select_again(scored, MIWVConfig(score=easiest_first, extra_losses="zero_shot"))


def test_a_folder_without_rounds_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"There are no scores in {tmp_path / 'miwv'}. Give the folder that"):
        read_rounds(tmp_path)
