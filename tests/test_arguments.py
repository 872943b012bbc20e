"""An argument of another kind, or two that were exchanged, is told in one sentence by every public function."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase, Trainer

from miwv_trainer import (
    MIWVCallback,
    MIWVConfig,
    MIWVDataSampler,
    Pool,
    attach,
    compute_response_losses,
    pool_from_rows,
    pool_from_tokenized,
    score_and_select,
    select_again,
    to_dataset,
    tokenize,
)
from tests.helpers.tiny import tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.trainers import arguments

CONFIG = MIWVConfig(fraction=0.5, embedder="tfidf")


class Things(NamedTuple):
    rows: datasets.Dataset
    tokenizer: PreTrainedTokenizerBase
    dataset: datasets.Dataset
    pool: Pool
    model: Any
    trainer: Trainer
    output: str


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Things:
    folder, rows, tokenizer, model = tmp_path_factory.mktemp("out"), tiny_dataset(8), tiny_tokenizer(), tiny_model()
    dataset = tokenize(rows, tokenizer)
    collator = DataCollatorForSeq2Seq(tokenizer)
    trainer = Trainer(model, arguments(folder), train_dataset=dataset, data_collator=collator)
    pool = pool_from_rows(rows, tokenizer)
    return Things(rows, tokenizer, dataset, pool, model, trainer, str(folder / "scores"))


IS_TOKENIZER = r"must be a loaded tokenizer \(`AutoTokenizer"
IS_DATASET = r"must be one `datasets.Dataset` \(a split, `Dataset.from_list\(rows\)`\), or what `load_rows\(name\)`"
IS_MODEL = r"must be a loaded model \(`AutoModelForCausalLM"
IS_POOL = r"must be a pool \(`pool_from_rows\(rows, tokenizer\)`\)"
CALLS: dict[str, tuple[Callable[[Things], object], str]] = {
    "tokenize, exchanged": (lambda t: tokenize(t.tokenizer, t.rows), rf"`dataset` in `tokenize\(.*{IS_DATASET}"),
    "tokenize, a name": (lambda t: tokenize("pool.jsonl", t.tokenizer), rf"{IS_DATASET} reads, but got 'pool.jsonl'"),
    "tokenize, a list": (lambda t: tokenize(list(t.rows), t.tokenizer), rf"{IS_DATASET} reads, but got a list"),
    "tokenize, splits": (
        lambda t: tokenize(datasets.DatasetDict(train=t.rows), t.tokenizer),
        rf"{IS_DATASET} reads, but got a DatasetDict",
    ),
    "tokenize, a model's name": (lambda t: tokenize(t.rows, "gpt2"), rf"`tokenizer`.*{IS_TOKENIZER}.*got 'gpt2'"),
    "to_dataset": (lambda t: to_dataset(list(t.rows)), rf"`rows` in `to_dataset\(rows\)` {IS_DATASET}"),
    "pool_from_rows, exchanged": (lambda t: pool_from_rows(t.tokenizer, t.rows), rf"{IS_TOKENIZER}.*got a Dataset"),
    "pool_from_rows, a model": (lambda t: pool_from_rows(t.rows, t.model), rf"{IS_TOKENIZER}.*a LlamaForCausalLM\.$"),
    "pool_from_rows, a name": (lambda t: pool_from_rows("pool.jsonl", t.tokenizer), r"got the name 'pool.jsonl': load"),
    "pool_from_tokenized, exchanged": (lambda t: pool_from_tokenized(t.tokenizer, t.dataset), IS_TOKENIZER),
    "pool_from_tokenized, a name": (lambda t: pool_from_tokenized(t.dataset, "gpt2"), rf"{IS_TOKENIZER}.*got 'gpt2'"),
    "attach, exchanged": (
        lambda t: attach(CONFIG, t.trainer),
        r"`attach\(trainer, config\)` takes a Trainer.*a MIWV",
    ),
    "attach, a model": (
        lambda t: attach(t.trainer, t.model),
        r"`config` must be a MIWVConfig.*a LlamaForCausalLM\.",
    ),
    "attach, a tokenizer as scorer": (
        lambda t: attach(t.trainer, CONFIG, t.tokenizer),
        r"`scorer` must be .*got a ",
    ),
    "score_and_select, exchanged": (lambda t: score_and_select(t.pool, t.model), rf"`model`.*{IS_MODEL}.*got a Pool"),
    "score_and_select, rows": (lambda t: score_and_select(t.model, t.rows), rf"`pool`.*{IS_POOL}, but got a Dataset"),
    "score_and_select, a folder as configuration": (
        lambda t: score_and_select(t.model, t.pool, t.output, CONFIG),
        r"`config` in .* must be a MIWVConfig, but got '.*scores'",
    ),
    "score_and_select, a number as folder": (
        lambda t: score_and_select(t.model, t.pool, CONFIG, 0.5),
        r"`output` in .* must be the name of a folder, but got 0.5",
    ),
    "select_again, exchanged": (lambda t: select_again(CONFIG, t.pool), r"`scored`.*must be a round.*got a MIWVConfig"),
    "compute_response_losses, exchanged": (lambda t: compute_response_losses(t.pool, t.model), rf"{IS_MODEL}.*a Pool"),
    "compute_response_losses, rows": (lambda t: compute_response_losses(t.model, t.rows), rf"{IS_POOL}.*a Dataset"),
    "MIWVCallback, exchanged": (
        lambda t: MIWVCallback(MIWVDataSampler(8, 0.5), CONFIG),
        r"`config`.*MIWVDataSampler",
    ),
    "MIWVCallback, a pool": (lambda t: MIWVCallback(CONFIG, t.pool), r"`sampler`.*a MIWVDataSampler, but got a Pool"),
    "MIWVCallback, a model": (lambda t: MIWVCallback(CONFIG, MIWVDataSampler(8, 0.5), t.model), rf"`pool`.*{IS_POOL}"),
    "MIWVDataSampler, a dataset": (
        lambda t: MIWVDataSampler(t.rows, 0.5),
        r"`pool_size`.*number of samples.*a Dataset",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_an_argument_of_another_kind_is_told_in_one_line(case: str, things: Things) -> None:
    call, words = CALLS[case]
    with pytest.raises(TypeError, match=words) as refused:
        call(things)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 250
    assert not Path(things.output).exists() and not Path("miwv-output").exists()


def test_a_round_is_selected_from_by_a_configuration_only(things: Things, tmp_path: Path) -> None:
    scored = score_and_select(things.model, things.pool, CONFIG, tmp_path)
    with pytest.raises(TypeError, match=r"`config` in `select_again\(scored, config\)` must be a MIWVConfig.*a dict"):
        select_again(scored, {"fraction": 0.1})
