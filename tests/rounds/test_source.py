"""Round 0 read from another run: one scored pool feeds a sweep; what does not go together is refused by both values."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from miwv_trainer import MIWVConfig, attach, pool_from_rows, read_rounds, score_and_select, select_again
from miwv_trainer.cli.main import main
from miwv_trainer.data.pool import Pool
from miwv_trainer.data.sample_hashes import hash_pool_content
from miwv_trainer.rounds import exemplars as exemplars_module
from miwv_trainer.storage.stored_round import HASHES, StoredRound
from tests.helpers.tiny import save_tiny, tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.trainers import noting_trainer
from tests.helpers.trees import PREAMBLE, synthetic_pool

COUNT = 32
CONFIG = MIWVConfig(fraction=0.25, embedder="tfidf")


def pool_of(count: int = COUNT) -> Any:
    return pool_from_rows(tiny_dataset(count), tiny_tokenizer())


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> StoredRound:
    """Of a folder, without training."""
    return score_and_select(tiny_model(), pool_of(), CONFIG, tmp_path_factory.mktemp("scored"))


def output_of(scored: StoredRound) -> str:
    return str(scored.folder.parent.parent)


def count_scoring_forwards(model: nn.Module) -> list[int]:
    """Tokens of each forward in evaluation mode, which no training step makes."""
    tokens: list[int] = []

    def note(module: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
        if not module.training:
            tokens.append(inputs["input_ids"].numel())

    model.register_forward_pre_hook(note, with_kwargs=True)
    return tokens


def test_three_learning_rates_take_one_pass_over_the_pool_in_all(tmp_path: Path) -> None:
    first, forwards, rounds = str(tmp_path / "lr0"), [], []
    for number, learning_rate in enumerate((1e-4, 1e-3, 1e-2)):
        trainer = noting_trainer(tmp_path / f"lr{number}", learning_rate=learning_rate, num_train_epochs=1)
        forwards.append(count_scoring_forwards(trainer.model))
        config = MIWVConfig(fraction=0.25, embedder="tfidf", scores_from=None if number == 0 else first)
        callback = attach(trainer, config)
        trainer.train()
        rounds.append(callback.rounds[0])
    assert sum(forwards[0]) > rounds[0].summary["tokens_forwarded"] > 0
    assert forwards[1:] == [[], []]
    for later in rounds[1:]:
        assert later.scores.drop(["age"]).equals(rounds[0].scores.drop(["age"]))
        assert later.summary["tokens_forwarded"] == 0 and later.summary["scored"] == 0
        origin = later.summary["scores_from"]
        assert origin["folder"] == first and origin["dtype"] == "float32" and origin["context"] == 512
        assert origin["date"] == rounds[0].summary["date"]
    # A run that reads from one that has read names the model and the date of the first.
    trainer = noting_trainer(tmp_path / "lr3", num_train_epochs=1)
    callback = attach(trainer, MIWVConfig(fraction=0.25, embedder="tfidf", scores_from=str(tmp_path / "lr2")))
    trainer.train()
    assert callback.rounds[0].summary["scores_from"] == {**origin, "folder": str(tmp_path / "lr2")}


def test_scores_of_the_command_line_serve_a_trainer_which_scores_later_rounds_itself(
    tmp_path: Path, scored: StoredRound, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = noting_trainer(tmp_path)
    forwards = count_scoring_forwards(trainer.model)
    config = MIWVConfig(
        fraction=0.25, embedder="tfidf", scores_from=output_of(scored), rescore_strategy="epoch", rescore_budget=0.5
    )
    callback = attach(trainer, config)
    trainer.train()
    first, second = callback.rounds
    for name in ("exemplar", "similarity", "zero_shot_loss", "one_shot_loss", "selected"):
        np.testing.assert_array_equal(first.column(name), scored.column(name))
    np.testing.assert_array_equal(second.column("exemplar"), scored.column("exemplar"))
    assert forwards and second.summary["scored"] == COUNT // 2
    is_again = second.column("age") == 0
    assert is_again.sum() == COUNT // 2
    np.testing.assert_array_equal(second.column("miwv")[~is_again], scored.column("miwv")[~is_again])
    assert (second.column("miwv")[is_again] != scored.column("miwv")[is_again]).all()
    assert (tmp_path / "miwv" / "exemplars.parquet").is_file()


def test_another_selection_of_the_same_scores_is_the_one_that_select_makes(
    tmp_path: Path, scored: StoredRound, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings come along, so that diversity looks at those by which the exemplars were found."""
    monkeypatch.setattr(exemplars_module, "embed_texts", None)
    config = MIWVConfig(
        fraction=0.4, embedder="tfidf", score="low_miwv", diversity="mmr", scores_from=output_of(scored)
    )
    model = tiny_model(seed=1)
    forwards = count_scoring_forwards(model)
    again = score_and_select(model, pool_of(), config, tmp_path)
    assert not forwards
    assert again.selection.tolist() == sorted(select_again(scored, config).selection.tolist())
    assert set(again.selection) != set(scored.selection)
    assert score_and_select(model, pool_of(), config, tmp_path).was_there


REFUSED = {
    "another pool": ({}, {}, "is of 32 samples with the fingerprint {theirs}, this run's are 31 with [0-9a-f]{{16}}"),
    "another embedder": ({"embedder": "model"}, {}, "made with embedder = 'tfidf', this run has embedder = 'model'"),
    "copies": (
        {"allow_identical_exemplars": True},
        {},
        "made with allow_identical_exemplars = False, this run has allow_identical_exemplars = True",
    ),
    "a response loss": (
        {"score": "ifd"},
        {"score": "influence"},
        r"without the response loss, which score = 'ifd' needs.*Give a run with the same score\.",
    ),
    "a loss that is not there": ({}, {"score": "zero_shot_loss", "min_similarity": -0.9}, "without the one-shot loss"),
    "no exemplars": (
        {},
        {"score": "zero_shot_loss"},
        "without exemplars.*= 'zero_shot_loss', this run has score",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_scores_that_do_not_serve_are_refused_with_both_values(name: str, tmp_path: Path, scored: StoredRound) -> None:
    values, of_source, words = REFUSED[name]
    source = scored
    if of_source:
        source = score_and_select(
            tiny_model(), pool_of(), MIWVConfig(embedder="tfidf", **of_source), tmp_path / "source"
        )
    config = MIWVConfig(**{"embedder": "tfidf", "scores_from": output_of(source), **values})
    pool = pool_of(COUNT - 1 if name == "another pool" else COUNT)
    with pytest.raises(ValueError, match=words.format(theirs=source.summary["pool_content"])):
        score_and_select(tiny_model(), pool, config, tmp_path / "out")
    assert not list((tmp_path / "out").glob("miwv/round*"))


@pytest.mark.parametrize("ours_is_shorter", [True, False])
def test_what_is_left_out_is_what_has_no_loss_there_whatever_the_context_is_here(
    ours_is_shorter: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = pool_of()
    short = int(np.median(pool.lengths)) + len(pool.preamble)
    theirs, ours = (None, short) if ours_is_shorter else (short, None)
    source = score_and_select(
        tiny_model(), pool, MIWVConfig(fraction=0.1, embedder="tfidf", scoring_max_length=theirs), tmp_path / "source"
    )
    caplog.clear()
    config = MIWVConfig(fraction=0.1, embedder="tfidf", scoring_max_length=ours, scores_from=output_of(source))
    found = score_and_select(tiny_model(), pool, config, tmp_path / "out")
    missing = int(np.isnan(source.column("miwv")).sum())
    assert found.selection.tolist() == source.selection.tolist()
    assert (missing > 0) != ours_is_shorter
    told = f"Round 0: {missing} of {COUNT} samples have no losses in {source.folder} and are left out."
    assert (told in caplog.text) == (missing > 0)
    assert "could not be scored" not in caplog.text and "was cut" not in caplog.text


def test_other_labels_and_another_order_are_another_pool(tmp_path: Path, scored: StoredRound) -> None:
    config = MIWVConfig(embedder="tfidf", scores_from=output_of(scored))
    for rows in (tiny_dataset(COUNT).shuffle(seed=1), tiny_dataset(COUNT, seed=1)):
        with pytest.raises(ValueError, match="names scores of another pool"):
            score_and_select(tiny_model(), pool_from_rows(rows, tiny_tokenizer()), config, tmp_path)


def test_a_pool_is_the_same_with_and_without_a_preamble() -> None:
    """A Trainer's pool has none; `miwv score` keeps once what all samples begin with."""
    kept = synthetic_pool([6, 9, 4])
    sequences = [np.concatenate([kept.preamble, kept.sample(index)]) for index in range(3)]
    masks = [np.concatenate([[False] * PREAMBLE, kept.response_mask(index)]) for index in range(3)]
    offsets = np.cumsum([0, *map(len, sequences)])
    whole = Pool(np.array([], dtype=np.int32), np.concatenate(sequences), np.concatenate(masks), offsets)
    assert whole.fingerprint != kept.fingerprint
    assert hash_pool_content(whole) == hash_pool_content(kept)
    relabelled = Pool(kept.preamble, kept.tokens, ~kept.is_response, kept.offsets)
    assert hash_pool_content(relabelled) != hash_pool_content(kept)


def test_a_folder_without_scores_and_the_runs_own_folder_are_refused(tmp_path: Path, scored: StoredRound) -> None:
    with pytest.raises(FileNotFoundError, match="`scores_from` is .*, but there is no round 0 in"):
        score_and_select(
            tiny_model(), pool_of(), MIWVConfig(embedder="tfidf", scores_from=str(tmp_path)), tmp_path / "o"
        )
    own = MIWVConfig(embedder="tfidf", scores_from=output_of(scored))
    with pytest.raises(ValueError, match="the folder that this run itself writes to. Leave it out"):
        score_and_select(tiny_model(), pool_of(), own, output_of(scored))
    assert read_rounds(output_of(scored))[0].scores.equals(scored.scores)


def test_scores_that_need_no_loss_take_none_from_elsewhere() -> None:
    with pytest.raises(ValueError, match="`scores_from` is 'a'.*needs no loss"):
        MIWVConfig(score="random", scores_from="a")
    with pytest.raises(ValueError, match="`scores_from` must be a folder's path as text, but got 3"):
        MIWVConfig(scores_from=3)


def test_the_command_line_reads_and_says_whose_scores_they_are(
    tmp_path: Path, scored: StoredRound, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny(tmp_path / "model")
    tiny_dataset(COUNT).to_json(tmp_path / "pool.jsonl")
    typed = f"score --model {model} --dataset {tmp_path / 'pool.jsonl'} --output {tmp_path / 'out'} --fraction 0.1"
    assert main([*typed.split(), "--embedder", "tfidf", "--scores-from", output_of(scored)]) == 0
    shown = capsys.readouterr().out
    assert f"losses read from {output_of(scored)}, where a model without a name (float32) made them on 20" in shown
    (found,) = read_rounds(tmp_path / "out")
    assert found.summary["number_selected"] == 3
    np.testing.assert_array_equal(found.column("miwv"), scored.column("miwv"))
    # By these, `miwv select` and `miwv report` find the samples in a file in which they stand elsewhere.
    assert all(np.array_equal(found.column(name), scored.column(name)) for name in HASHES)
    assert found.column("ids_hash").all() and found.column("text_hash").all() and found.column("words_hash").all()


def test_a_part_of_a_runs_folder_names_the_whole(tmp_path: Path, scored: StoredRound) -> None:
    right = output_of(scored)
    for part in ("miwv", "miwv/round-000", "miwv/round-000/scores.parquet"):
        config = MIWVConfig(embedder="tfidf", scores_from=f"{right}/{part}")
        with pytest.raises(FileNotFoundError, match=f"there is no round 0 in .* Give '{right}', which holds it"):
            score_and_select(tiny_model(), pool_of(), config, tmp_path)
    # Another folder beside it is no part of it.
    config = MIWVConfig(embedder="tfidf", scores_from=f"{right}/nothing")
    with pytest.raises(FileNotFoundError, match="Give the folder that `miwv score --output` or a Trainer wrote to"):
        score_and_select(tiny_model(), pool_of(), config, tmp_path)


def test_a_home_folder_is_expanded(tmp_path: Path, scored: StoredRound, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(output_of(scored)).parent))
    config = MIWVConfig(fraction=0.25, embedder="tfidf", scores_from=f"~/{Path(output_of(scored)).name}")
    found = score_and_select(tiny_model(), pool_of(), config, tmp_path)
    assert found.summary["scores_from"]["folder"] == output_of(scored)


def test_a_round_without_its_summary_is_told_as_such(tmp_path: Path, scored: StoredRound) -> None:
    shutil.copytree(output_of(scored), tmp_path / "copy")
    (tmp_path / "copy" / "miwv" / "round-000" / "round.json").unlink()
    config = MIWVConfig(embedder="tfidf", scores_from=str(tmp_path / "copy"))
    with pytest.raises(
        FileNotFoundError, match=r"round-000 lacks its round\.json, .*Bring the file back, or move"
    ) as error:
        score_and_select(tiny_model(), pool_of(), config, tmp_path / "out")
    assert "rounds there" not in str(error.value)


def test_an_array_is_refused_where_rows_stand_in_another_order(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(COUNT, 8)).astype("float32")
    values: dict[str, Any] = {"fraction": 0.25, "match": "rows", "scores_from": str(tmp_path / "source")}
    score_and_select(tiny_model(), pool_of(), MIWVConfig(embedder=vectors), tmp_path / "source")
    rows = pool_from_rows(tiny_dataset(COUNT).select(range(COUNT)[::-1]), tiny_tokenizer())
    words = "`embedder` is an array, .*rows stand in another order than those of .*Bring rows and array to the order"
    with pytest.raises(ValueError, match=words):
        score_and_select(tiny_model(), rows, MIWVConfig(embedder=vectors[::-1].copy(), **values), tmp_path / "out")
    found = score_and_select(tiny_model(), pool_of(), MIWVConfig(embedder=vectors, **values), tmp_path / "out")
    assert found.summary["tokens_forwarded"] == 0
