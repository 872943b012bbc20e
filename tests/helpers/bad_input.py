"""What can be wrong with the input of `miwv`: each case prepares a folder and gives what is typed, and what is said."""
# ruff: noqa: E501 (a table is easier to read in long lines)

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import T5Config, T5ForConditionalGeneration

from tests.helpers.tiny import LOCAL_WINDOWS, instruction_rows, save_tiny, tiny_config, tiny_model, tiny_tokenizer

Prepare: TypeAlias = Callable[[Path], list[str]]
ROWS = instruction_rows(8)
BESIDE: list[subprocess.Popen[str]] = []  # processes that run beside a case
GOOD = ["--embedder", "tfidf", "--fraction", "0.5"]


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def score(folder: Path, *options: str, dataset: Path | None = None, model: Path | None = None) -> list[str]:
    """A command that is right but for what is given."""
    dataset = dataset or lines(folder / "pool.jsonl", ROWS)
    model = model or save_tiny(folder / "model")
    words = ["score", "--model", str(model), "--dataset", str(dataset), *GOOD, *options]
    return words if "--output" in options else [*words, "--output", str(folder / "out")]


def with_rows(rows: list[Any]) -> Prepare:
    return lambda folder: score(folder, dataset=lines(folder / "bad.jsonl", rows))


def with_file(name: str, content: bytes) -> Prepare:
    def prepare(folder: Path) -> list[str]:
        (folder / name).write_bytes(content)
        return score(folder, dataset=folder / name)

    return prepare


def with_shards(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        lines(folder / name, ROWS)
    return folder


def with_options(*options: str) -> Prepare:
    return lambda folder: score(folder, *(option.format(folder=folder) for option in options))


def with_model(change: Callable[[Path], Any], *options: str) -> Prepare:
    def prepare(folder: Path) -> list[str]:
        model = save_tiny(folder / "model")
        change(model)
        return score(folder, *options, model=model)

    return prepare


def weights(value: float) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        model = tiny_model()
        with torch.no_grad():
            model.lm_head.weight.fill_(value)
        model.save_pretrained(folder)

    return change


def tokenizer(chat_template: str) -> Callable[[Path], Any]:
    return lambda folder: tiny_tokenizer(chat_template).save_pretrained(folder)


def edit(name: str, **values: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def cut(name: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def own_code(folder: Path) -> None:
    """A model whose code would have to be run."""
    (folder / "modeling_own.py").write_text(f"open({str(folder / 'was-run')!r}, 'w')\nclass Own: ...\n")
    edit("config.json", model_type="own", auto_map={"AutoConfig": "modeling_own.Own"})(folder)


def after_a_run(change: Callable[[Path], Any], *command: str) -> Prepare:
    """A command on an output folder that a run has left and something has happened to."""

    def prepare(folder: Path) -> list[str]:
        from miwv_trainer.cli.main import main

        typed = score(folder)
        assert main(typed) == 0
        change(folder / "out" / "miwv")
        return [word.format(folder=folder) for word in command] or typed

    return prepare


def other_pool(folder: Path) -> list[str]:
    other = lines(folder / "other.jsonl", ROWS[::-1])
    return after_a_run(lambda miwv: None, *SELECT, "--dataset", str(other))(folder)


def in_use(folder: Path) -> list[str]:
    """Another process has claimed the folder and lives on until its input ends."""
    code = f"from miwv_trainer.storage.store import Store; Store({str(folder / 'out')!r}).claim(); print('claimed', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "claimed\n"
    BESIDE.append(process)
    return score(folder)


def short_array(folder: Path) -> list[str]:
    np.save(folder / "short.npy", np.zeros((3, 4), dtype=np.float32))
    return score(folder, "--embedder", str(folder / "short.npy"))


def no_array(folder: Path) -> list[str]:
    (folder / "garbage.npy").write_text("garbage")
    return score(folder, "--embedder", str(folder / "garbage.npy"))


def made_folder(folder: Path, *names: str) -> Path:
    """A folder with empty files."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text("")
    return folder


def small_vocabulary(folder: Path) -> None:
    tiny_model(tiny_config(vocab_size=50)).save_pretrained(folder)


def folder_in_the_way(folder: Path) -> list[str]:
    (folder / "file").write_text("")
    return score(folder, "--output", str(folder / "file" / "out"))


def parquet(**columns: Any) -> Prepare:
    def prepare(folder: Path) -> list[str]:
        pq.write_table(pa.table(columns), folder / "bad.parquet")
        return score(folder, dataset=folder / "bad.parquet")

    return prepare


def seq2seq(folder: Path) -> None:
    config = T5Config(vocab_size=512, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder)


def windowed(folder: Path) -> None:
    tiny_model(LOCAL_WINDOWS).save_pretrained(folder)


BROKEN = "".join(json.dumps(row) + "\n" for row in ROWS[:3]) + '{"instruction": "a", "output": \n' + json.dumps(ROWS[4])
LONG = {"instruction": "word " * 100_000, "output": "yes"}
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]

SELECT = ("select", "--scores", "{folder}/out", "--fraction", "0.1")
REPORT = ("report", "--run", "{folder}/out")
LATIN = '{"prompt": "\u00e9", "completion": "x"}\n'.encode("latin-1") * 3
HALF_ZIPPED = gzip.compress(json.dumps(ROWS).encode())[:40]

POOLS: dict[str, tuple[Prepare, str]] = {
    "a file that does not exist": (lambda f: score(f, dataset=f / "none.jsonl"), "There is no file"),
    "a file of an unknown kind": (with_file("pool.txt", b"a"), "not a kind of file that can be read; allowed"),
    "an empty file": (with_file("pool.jsonl", b""), "is empty: the pool needs at least two samples"),
    "JSON Lines with a broken line": (with_file("pool.jsonl", BROKEN.encode()), "read as json: line 4 is no JSON"),
    "a line that is not a JSON object": (
        with_file("pool.jsonl", b'{"prompt": "a"}\n"a"\n'),
        "line 2 is no JSON object",
    ),
    "a file that is not UTF-8": (with_file("pool.jsonl", LATIN), "Line 1 of .* is not UTF-8 .*save the file in UTF-8"),
    "a CSV file that is not UTF-8": (with_file("pool.csv", b"prompt,completion\na,\xe9\n"), "Line 2 of .* not UTF-8"),
    "a `.gz` file that is cut short": (
        with_file("pool.jsonl.gz", HALF_ZIPPED),
        "could not be read: Compressed file ended",
    ),
    "a `.gz` file that is not gzip": (with_file("pool.jsonl.gz", b"abc" * 9), "could not be read: Not a gzipped file"),
    "a Parquet file that is cut short": (with_file("pool.parquet", b"PAR1abc"), "could not be read as parquet"),
    "a name that the hub does not have": (
        with_options("--dataset", "nobody/nothing"),
        "could not be loaded from the hub",
    ),
    "columns with unknown names": (
        with_rows([{"ask": "a", "say": "b"}] * 3),
        "needs the columns `prompt`.*--columns.*This one has ask, say",
    ),
    "columns that can be read in two ways": (
        with_rows([{"question": "a", "answer": "b", "prompt": "a", "completion": "b"}] * 3),
        "Sample 0 .*by its columns `prompt` and `completion`, and by `question` and `answer`: say by `--columns",
    ),
    "a column that changes the prompt and is not read": (
        with_rows([{"messages": TURNS, "history": [["a", "b"]]}] * 2),
        "Sample 0 .*column `history` changes the prompt but is not read",
    ),
    "`--columns` with names that the dataset lacks": (
        lambda f: score(f, "--columns", "prompt=ask,response=output"),
        "`columns` names 'ask', but no sample has it; found: input, instruction, output",
    ),
    "JSON with half of a surrogate pair": (
        with_file("pool.jsonl", b'{"a": "\\ud83d"}\n'),
        "line 1 holds half of a character",
    ),
    "a CSV line with too few cells": (with_file("pool.csv", b"a,b\n1\n"), "line 2: it has 1 cells, but"),
    "a folder of several kinds of files": (
        lambda f: score(f, dataset=with_shards(f / "pool", "a.jsonl", "b.csv")),
        "holds csv files and json files",
    ),
    "a folder without a split `train`": (
        lambda f: score(f, dataset=with_shards(f / "pool", "test.jsonl")),
        "has the splits test, but no `train`",
    ),
    "an output in the folder of the pool": (
        lambda f: score(f, "--output", str(f / "pool" / "out"), dataset=with_shards(f / "pool", "a.jsonl")),
        "out lies in .*pool, all files of which are the pool: give another place as `--output`",
    ),
    "a prompt that is a number": (
        with_rows([{"prompt": 1, "completion": 2}] * 2),
        "Sample 0 .*`content` that are text",
    ),
    "a prompt that is a list": (parquet(prompt=[["a"], ["b"]], completion=["c", "d"]), "`content` that are text"),
    "`messages` that is text": (
        with_rows([{"messages": "hello"}] * 2),
        "Every turn must have a `role` and a `content`",
    ),
    "a turn without `content`": (with_rows([{"messages": [{"role": "user"}]}] * 2), "a `role` and a `content`"),
    "conversations without an answer": (
        with_rows([{"messages": TURNS[:1]}] * 2),
        "Not one sample .* has a response token",
    ),
    "one sample": (with_rows(ROWS[:1]), "The pool has one sample: .*so give two"),
    "all samples identical": (with_rows([ROWS[0]] * 5), "5 with no exemplar but copies of themselves.*allow_identical"),
    "all responses empty": (with_rows([{"prompt": f"a{n}", "completion": ""} for n in range(4)]), "response token"),
    "all responses null": (with_rows([{"prompt": f"a{n}", "completion": None} for n in range(4)]), "response token"),
    "no prompt contains a word": (
        with_rows([{"instruction": "", "output": f"a{n}"} for n in range(4)]),
        "found no word",
    ),
    "all samples too long": (with_rows([LONG, {**LONG, "output": "no"}]), "2 with more tokens than the context of 512"),
}
MODELS: dict[str, tuple[Prepare, str]] = {
    "a model that does not exist": (lambda f: score(f, model=f / "none"), "No model could be loaded from .*none"),
    "a folder without a model": (
        lambda f: score(f, model=made_folder(f / "empty")),
        "No model could be loaded from .*empty",
    ),
    "a folder with two GGUF files": (
        lambda f: score(f, model=made_folder(f / "two", "a.gguf", "b.gguf")),
        "several GGUF files",
    ),
    "a model without weights": (with_model(lambda m: (m / "model.safetensors").unlink()), "No model could be loaded"),
    "a weight file that is cut short": (
        with_model(cut("model.safetensors")),
        "No model could be loaded .*incomplete metadata",
    ),
    "a `config.json` that is cut short": (with_model(cut("config.json")), "No model could be loaded"),
    "a `tokenizer.json` that is cut short": (with_model(cut("tokenizer.json")), "No model could be loaded"),
    "a model that needs code of its repository": (with_model(own_code), "No model could be loaded .*code"),
    "a chat template with a syntax error": (with_model(tokenizer("{% for %}")), "Sample 0 .*chat template refuses it"),
    "a chat template that raises an exception": (
        with_model(tokenizer("{{ raise_exception('no') }}")),
        "template refuses it: no",
    ),
    "token ids outside the vocabulary": (
        with_model(small_vocabulary),
        "token id 388, but .* vocabulary has 50 entries",
    ),
    "weights that are NaN": (
        with_model(weights(float("nan"))),
        "Not one loss is finite: .*Check its weights and dtype",
    ),
    "weights that are infinite": (with_model(weights(float("inf"))), "Not one loss is finite"),
    "an encoder-decoder model": (with_model(seq2seq), "No model could be loaded"),
    "trees on a window by another name": (
        with_model(windowed, "--layout", "tree"),
        'cannot be scored with `layout="tree"`',
    ),
}
OPTIONS: dict[str, tuple[Prepare, str]] = {
    "`fraction=0`": (with_options("--fraction", "0"), "`fraction` must be .*above 0 .*got 0.0"),
    "`fraction=5`": (with_options("--fraction", "5"), "`fraction` must be .*at most 1 .*got 5.0"),
    "`fraction=nan`": (with_options("--fraction", "nan"), "`fraction` must be .*got nan"),
    "`scoring_max_length=0`": (with_options("--max-length", "0"), "`--max-length` must be .*at least 1, but got 0"),
    "a `scoring_max_length` shorter than every sample": (
        with_options("--max-length", "4"),
        "8 with more tokens than the context of 4",
    ),
    "`tokens_per_row=-1`": (with_options("--tokens-per-row", "-1"), "`--tokens-per-row` must be .*got -1"),
    "`tokens_per_batch=0`": (with_options("--tokens-per-batch", "0"), "`--tokens-per-batch` must be .*got 0"),
    "`logits_chunk=0`": (with_options("--logits-chunk", "0"), "`--logits-chunk` must be .*got 0"),
    "an embedder that does not exist": (
        with_options("--embedder", "{folder}/none"),
        "The embedder .* could not be loaded",
    ),
    "an embedder that is nearly a built-in one": (
        with_options("--embedder", "tfdif"),
        "Unknown embedder: 'tfdif' is no folder here. Did you mean 'tfidf'",
    ),
    "a band whose quantiles descend": (
        with_options("--quantile-band", "0.9", "0.1"),
        "`--quantile-band` must be two numbers",
    ),
    "guards that exclude every sample": (
        with_options("--min-response-tokens", "999"),
        "No sample .* may be selected: min_response_tokens=999 leaves out 8",
    ),
    "a band that lies between two samples": (
        with_options("--quantile-band", "0.51", "0.52"),
        r"No sample .* may be selected: quantile_band=\[0.51, 0.52\] leaves out 8",
    ),
    "`loss_band` with a score that computes no losses": (
        with_options("--score", "random", "--loss-band", "0", "0.7"),
        "`--loss-band` is .*makes no forward",
    ),
    "a `group_column` that the dataset lacks": (
        with_options("--group-column", "task"),
        "`--group-column` is 'task', but the dataset has the columns instruction",
    ),
    "an array file that does not exist": (
        with_options("--embedder", "{folder}/none.npy"),
        "`--embedder` is '.*none.npy', but there is no such file",
    ),
    "an array file that `numpy.save` did not write": (no_array, "garbage.npy could not be read as an array of numbers"),
    "an array with too few lines": (short_array, "8 samples|has 3"),
}
FILES: dict[str, tuple[Prepare, str]] = {
    "an output that is a file": (
        lambda f: score(f, "--output", str(lines(f / "file", []))),
        "`--output` must be a folder",
    ),
    "an output inside a file": (folder_in_the_way, "`--output` must be a folder, but .*file is a file"),
    "a folder without scores": (
        lambda f: ["select", "--scores", str(f), "--fraction", "0.1"],
        "There are no scores in",
    ),
    "a `scores.parquet` that is cut short": (
        after_a_run(cut("round-000/scores.parquet"), *SELECT),
        "scores.parquet could not be read, it is",
    ),
    "a `round.json` that is cut short": (
        after_a_run(cut("round-000/round.json"), *REPORT),
        "round.json could not be read, it is cut",
    ),
    "a round of a newer format": (
        after_a_run(edit("round-000/round.json", version=99), *REPORT),
        "format version 99, but",
    ),
    "a dataset that was not scored": (other_pool, "are not those that .* holds scores of: give the dataset that was"),
    "a folder that another run uses": (in_use, "Another run is writing to .*Wait until it has ended, or give another"),
}
CASES = {**POOLS, **MODELS, **OPTIONS, **FILES}
