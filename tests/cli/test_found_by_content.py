"""A Trainer's samples are found in a file by what they say, wherever they stand there: the lines that are written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import datasets
import pytest
from transformers import PreTrainedTokenizerBase

from miwv_trainer import tokenize
from miwv_trainer.compat import is_at_least
from miwv_trainer.data.pool import IGNORED_LABEL
from tests.helpers.chats import labels_of, only_ids, turn
from tests.helpers.found import (
    COUNT,
    OTHER,
    TOOLS,
    Rows,
    accented,
    alike_beside,
    alpaca,
    alpaca_with_long_answers,
    by_messages,
    by_sft,
    by_tokenize,
    chats,
    composing,
    conversations_with_system,
    ids_of,
    own_format,
    pairs,
    qwen,
    read_selected,
    rendered,
    rendering,
    select,
    several_turns,
    shuffled,
    texts,
    with_history,
    with_short_answers,
    without_template,
    write_lines,
    write_run,
)
from tests.helpers.templates import new_tokenizer
from tests.helpers.tiny import instruction_rows, tiny_tokenizer

# From TRL 1.9 on, SFTTrainer drops samples whose answer is cut off.
WITHOUT_CUT = COUNT - 3 if is_at_least("trl", "1.9") else COUNT


class Case(NamedTuple):
    make_rows: Callable[[], Rows]
    make_tokenizer: Callable[[], PreTrainedTokenizerBase]
    prepare: Callable[[Rows, PreTrainedTokenizerBase, Path], datasets.Dataset]
    keeps_columns: bool = True
    number: int = COUNT


CASES = {
    "SFTTrainer drops long samples": Case(texts, qwen, by_sft(max_length=64), number=WITHOUT_CUT),
    "SFTTrainer shuffles": Case(pairs, qwen, by_sft(shuffle_dataset=True)),
    "shuffled": Case(alpaca, tiny_tokenizer, by_tokenize(shuffled)),
    "split": Case(
        alpaca, tiny_tokenizer, by_tokenize(lambda rows: rows.train_test_split(0.25, seed=2)["train"]), number=15
    ),
    "filtered": Case(
        alpaca, tiny_tokenizer, by_tokenize(lambda rows: rows.filter(lambda row: row["id"] % 4)), number=15
    ),
    "sorted by another column, descending": Case(
        alpaca, tiny_tokenizer, by_tokenize(lambda rows: rows.sort("output", reverse=True))
    ),
    "messages, loss on all tokens, another template": Case(
        lambda: chats(turn("system", "Be brief.")), lambda: new_tokenizer("llama3"), by_sft(shuffle_dataset=True)
    ),
    "rendered text": Case(rendered, qwen, by_sft(shuffle_dataset=True)),
    "rendered text, no column left": Case(rendered, qwen, by_sft(shuffle_dataset=True), False),
    "tools that differ": Case(lambda: alike_beside("tools", TOOLS, OTHER), qwen, by_sft(shuffle_dataset=True)),
    "tools as text": Case(
        lambda: alike_beside("tools", json.dumps(TOOLS), json.dumps(OTHER)), qwen, by_sft(shuffle_dataset=True)
    ),
    "settings of the template that differ": Case(
        lambda: alike_beside("chat_template_kwargs", {"enable_thinking": True}, {"enable_thinking": False}),
        lambda: new_tokenizer("qwen3"),
        by_sft(shuffle_dataset=True),
    ),
    "system prompts in a column": Case(conversations_with_system, qwen, by_tokenize(shuffled)),
    "conversations that SFTTrainer turns into messages": Case(
        lambda: [
            {"id": row["id"] // 2, "conversations": row["conversations"]} for row in conversations_with_system()[::2]
        ],
        qwen,
        by_sft(shuffle_dataset=True),
        number=10,
    ),
    "history": Case(with_history, qwen, by_tokenize(shuffled)),
    "history, no column left": Case(with_history, qwen, by_tokenize(shuffled), False),
    "no column left": Case(alpaca, tiny_tokenizer, by_tokenize(shuffled), False),
    "no column left, texts": Case(texts, qwen, by_sft(max_length=64, shuffle_dataset=True), False, COUNT - 3),
    "no column left, Alpaca's template": Case(alpaca, without_template, by_tokenize(shuffled), False),
    "no column left, a template that thinks": Case(
        pairs, lambda: new_tokenizer("qwen3"), by_sft(shuffle_dataset=True), False
    ),
    "several turns": Case(several_turns, qwen, by_sft(shuffle_dataset=True)),
    "several turns, no column left": Case(several_turns, qwen, by_sft(shuffle_dataset=True), False),
    "the script's own messages beside the file's columns": Case(with_short_answers, qwen, by_messages),
    "messages that the script has rendered": Case(several_turns, qwen, rendering),
    "letters and accents composed by the tokenizer": Case(accented, composing, by_tokenize(shuffled), False),
    "no column left, a template of the script's own": Case(
        alpaca_with_long_answers, without_template, own_format("### Question: "), False
    ),
    "no column left, and answers cut off": Case(
        alpaca_with_long_answers, without_template, own_format("Q: ", 160), False
    ),
    "cut in the middle of the answer": Case(
        texts, qwen, by_sft(max_length=12, shuffle_dataset=True), number=WITHOUT_CUT
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_lines_of_the_selected_samples_are_written(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_rows, make_tokenizer, prepare, keeps_columns, number = CASES[case]
    rows = make_rows()
    file, tokenizer = write_lines(tmp_path / "pool.jsonl", rows), make_tokenizer()
    dataset = prepare([dict(row) for row in rows], tokenizer, tmp_path)
    if not keeps_columns:  # a prompt alone is found by its columns only; it is never selected
        dataset = dataset.filter(lambda row: any(label != IGNORED_LABEL for label in labels_of(row)))
    kept = dataset if keeps_columns else only_ids(dataset)
    assert len(dataset) == number
    selection = write_run(tmp_path, kept, tokenizer)
    assert select(tmp_path, file) == 0
    lines = file.read_text().splitlines()
    assert read_selected(tmp_path) == [lines[identity] for identity in ids_of(dataset, selection)]
    assert f"{number} of {number} samples are found among the {len(rows)} rows of {file}" in capsys.readouterr().out


def test_equal_samples_take_their_rows_in_the_order_in_which_they_come(tmp_path: Path) -> None:
    rows = [{"id": number, **instruction_rows(5)[number % 5]} for number in range(COUNT)]
    file, tokenizer = write_lines(tmp_path / "pool.jsonl", rows), tiny_tokenizer()
    dataset = tokenize(datasets.Dataset.from_list(rows).select(range(5, COUNT)), tokenizer)
    selection = write_run(tmp_path, dataset, tokenizer)
    assert select(tmp_path, file) == 0
    written = [json.loads(line) for line in read_selected(tmp_path)]
    expected = [dataset[int(index)] for index in selection]
    assert [row["output"] for row in written] == [row["output"] for row in expected]
    # The n-th of equal samples is the n-th of equal rows: the first in the file, which the run does not have.
    assert [row["id"] for row in written] == [row["id"] - 5 for row in expected]


@pytest.mark.parametrize("keeps_columns", [True, False])
def test_samples_that_differ_in_their_system_prompt_alone_are_told_apart_or_refused(
    keeps_columns: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Token ids alone do not say which system prompt a sample had, and one of the two rows would be the wrong one."""
    rows, tokenizer = conversations_with_system(), qwen()
    # One of the last pair is not in the run, so that there are two rows for one sample.
    dataset = tokenize(datasets.Dataset.from_list(rows[:-1]).shuffle(seed=1), tokenizer)
    kept = dataset if keeps_columns else dataset.select_columns(["input_ids", "labels"])
    selection = write_run(tmp_path, kept, tokenizer)
    file = write_lines(tmp_path / "pool.jsonl", rows)
    if keeps_columns:
        assert select(tmp_path, file) == 0
        assert [json.loads(line)["id"] for line in read_selected(tmp_path)] == ids_of(dataset, selection)
        return
    assert select(tmp_path, file) == 2
    assert not (tmp_path / "selected.jsonl").exists()
    said = capsys.readouterr().err
    assert "none of 19 samples is found" in said and "19 of those that are not found fit several rows" in said
