"""Runs of a Trainer's dataset with made-up scores, and what `miwv select` must write, known by an `id` column."""

import base64
import gzip
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tokenizers import normalizers
from transformers import PreTrainedTokenizerBase

from miwv_trainer import pool_from_tokenized, tokenize
from miwv_trainer.cli.main import main
from miwv_trainer.storage.stored_round import HASHES
from tests.helpers.chats import sft_dataset, sft_trainer, turn
from tests.helpers.rounds import highest, made_columns, write_round
from tests.helpers.templates import new_tokenizer
from tests.helpers.tiny import instruction_rows, tiny_tokenizer

FRACTION = 0.4
Rows = list[dict[str, Any]]
COUNT = 20
LONG = " stone" * 150
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}]
OTHER = [{"type": "function", "function": {"name": "hear", "description": "Hears.", "parameters": {"type": "object"}}}]


def numbered(rows: Rows) -> Rows:
    return [{"id": number, **row} for number, row in enumerate(rows)]


def texts() -> Rows:
    return numbered(
        [
            {"prompt": row["instruction"] + (LONG if number in (3, 7, 11) else ""), "completion": f" {row['output']}"}
            for number, row in enumerate(instruction_rows(COUNT))
        ]
    )


def alpaca() -> Rows:
    return numbered(instruction_rows(COUNT))


def alpaca_with_long_answers() -> Rows:
    """Each answer begins in its own way, and is longer than what is left of it."""
    return [
        {**row, "output": f"The answer to {row['instruction']} has many letters: {row['output']}{LONG}"}
        for row in alpaca()
    ]


def chats(*before: dict[str, str], **beside: Any) -> Rows:
    return numbered(
        [
            {"messages": [*before, turn("user", row["instruction"]), turn("assistant", row["output"])], **beside}
            for row in instruction_rows(COUNT)
        ]
    )


def pairs() -> Rows:
    return [{"id": row["id"], "prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in chats()]


def rendered() -> Rows:
    tokenizer = qwen()
    return [{"id": r["id"], "text": tokenizer.apply_chat_template(r["messages"], tokenize=False)} for r in chats()]


def alike_beside(name: str, *values: Any) -> Rows:
    """Samples that differ in a column beside the messages alone, in pairs."""
    return [
        {"id": 2 * row["id"] + number, "messages": row["messages"], name: value}
        for row in chats()[:10]
        for number, value in enumerate(values)
    ]


def conversations_with_system() -> Rows:
    return [
        {
            "id": 2 * row["id"] + number,
            "conversations": [{"from": m["role"], "value": m["content"]} for m in row["messages"]],
            "system": f"You are {name}.",
        }
        for row in chats()[:10]
        for number, name in enumerate(("Ann", "Bob"))
    ]


def with_history() -> Rows:
    return [{**row, "history": [[f"Hello {row['id'] % 2}", "Hi there."]] if row["id"] % 3 else []} for row in alpaca()]


def several_turns() -> Rows:
    rows = instruction_rows(2 * COUNT)
    turns = [[turn("user", row["instruction"]), turn("assistant", row["output"])] for row in rows]
    return numbered([{"messages": first + second} for first, second in zip(turns[::2], turns[1::2], strict=True)])


def with_short_answers() -> Rows:
    return [{**row, "output": "yes" if row["id"] % 2 else "no"} for row in alpaca()]


def accented() -> Rows:
    """Letters and their accents in two characters, as macOS writes them."""
    rows = alpaca()
    return [{**row, "output": unicodedata.normalize("NFD", f"Café {row['output']} crème")} for row in rows]


def qwen() -> PreTrainedTokenizerBase:
    return new_tokenizer("qwen2_5")


def composing() -> PreTrainedTokenizerBase:
    """A tokenizer that composes letters and accents, as Qwen's and Llama's do."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def without_template() -> PreTrainedTokenizerBase:
    return tiny_tokenizer(None, eos_token="</s>")


def by_sft(**arguments: Any) -> Callable[[Rows, PreTrainedTokenizerBase, Path], datasets.Dataset]:
    return lambda rows, tokenizer, folder: sft_dataset(sft_trainer(folder / "sft", rows, tokenizer, **arguments))


def by_messages(rows: Rows, tokenizer: PreTrainedTokenizerBase, folder: Path) -> datasets.Dataset:
    made = list(make_messages(datasets.Dataset.from_list(rows)))
    return sft_dataset(sft_trainer(folder / "sft", made, tokenizer))


def rendering(rows: Rows, tokenizer: PreTrainedTokenizerBase, folder: Path) -> datasets.Dataset:
    """A script that renders the file's messages itself and gives SFTTrainer the texts."""
    texts = [{"id": r["id"], "text": tokenizer.apply_chat_template(r["messages"], tokenize=False)} for r in rows]
    return sft_dataset(sft_trainer(folder / "sft", texts, tokenizer, shuffle_dataset=True))


def by_tokenize(change: Callable[[datasets.Dataset], Any] = lambda rows: rows) -> Callable[..., Any]:
    return lambda rows, tokenizer, folder: tokenize(change(datasets.Dataset.from_list(rows)), tokenizer)


def shuffled(rows: datasets.Dataset) -> datasets.Dataset:
    return rows.shuffle(seed=1)


def make_messages(rows: datasets.Dataset) -> datasets.Dataset:
    """A script's own turns in a column beside those of the file."""

    def write_turns(row: dict[str, Any]) -> dict[str, Any]:
        asked = f"## Task\n{row['instruction']}\n## Given\n{row['input']}"
        return {"messages": [turn("system", "Do it."), turn("user", asked), turn("assistant", row["output"])]}

    return rows.map(write_turns).shuffle(seed=4)


def own_format(opening: str, length: int | None = None) -> Callable[..., datasets.Dataset]:
    """A script's own template and truncation."""

    def prepare(rows: Rows, tokenizer: PreTrainedTokenizerBase, folder: Path) -> datasets.Dataset:
        def encode(row: dict[str, Any]) -> dict[str, Any]:
            prompt = tokenizer(f"{opening}{row['instruction']} {row['input']}\n### Answer: ")["input_ids"]
            answer = tokenizer(row["output"])["input_ids"]
            ids, labels = prompt + answer, [-100] * len(prompt) + answer
            return {"input_ids": ids[:length], "labels": labels[:length]}

        return datasets.Dataset.from_list(rows).shuffle(seed=3).map(encode)

    return prepare


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """JSON Lines with spaces that `json.dumps` would not write, so that a copy is told from a line written anew."""
    path.write_text("".join(json.dumps(row).replace('{"', '{ "', 1) + "\n" for row in rows))
    return path


def write_run(folder: Path, dataset: Any, tokenizer: PreTrainedTokenizerBase | None, **config: Any) -> np.ndarray:
    """The first round of a Trainer with that dataset. Returns what a fraction of 0.4 selects, by sorting."""
    pool = pool_from_tokenized(dataset, tokenizer)
    hashes, columns = pool.hashes, made_columns(len(pool))
    assert hashes is not None
    known = dict(zip(HASHES, (hashes.ids, hashes.text, hashes.words, hashes.answer), strict=True))
    selection = np.sort(highest(columns["miwv"], int(FRACTION * len(pool))))
    written = write_round(folder, {**columns, **known}, selection, **config)
    summary = written.folder / "round.json"
    noted = {**json.loads(summary.read_text()), "texts_from": "columns" if hashes.from_columns else "tokens"}
    summary.write_text(json.dumps(noted))
    return selection


def select(folder: Path, dataset: Path, *options: str) -> int:
    return main(["select", "--scores", str(folder), "--fraction", str(FRACTION), "--dataset", str(dataset), *options])


def read_selected(folder: Path) -> list[str]:
    return (folder / "selected.jsonl").read_text().splitlines()


def read_page(folder: Path) -> dict[str, Any]:
    """The data of a report's page, as its script unpacks them."""
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    packed = max(re.findall(r">([A-Za-z0-9+/=]{200,})<", page), key=len)
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def ids_of(rows: datasets.Dataset, selection: np.ndarray) -> list[int]:
    return [rows[int(index)]["id"] for index in selection]
