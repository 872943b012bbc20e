"""What is measured: a model, and a pool with its exemplars, both from command-line arguments."""

import argparse
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.shapes import SHAPES, make_random_model, make_shape
from miwv_trainer.config import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.files import Rows, load_rows
from miwv_trainer.data.models import load_model
from miwv_trainer.data.pool import NO_EXEMPLAR, Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.embeddings.embedders import embed_texts, get_embedder
from miwv_trainer.embeddings.nearest import find_nearest_exemplars
from miwv_trainer.scoring.context import find_context_length
from miwv_trainer.scoring.model_checks import check_model
from miwv_trainer.scoring.rows import find_scorable
from miwv_trainer.scoring.scorer import Scorer, prepare_scorer

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_POOL = ROOT.parent / "shared" / "data" / "alpaca_gpt4_1k.jsonl.gz"


@dataclass(frozen=True)
class Draw:
    """
    Which samples of a pool are measured.

    Args:
        samples: How many.
        seed: Seed of the draw.
        lengths_only: Draws lengths with replacement and fills them with random tokens, so that a small pool stands for
            a large one.
    """

    samples: int
    seed: int = 0
    lengths_only: bool = False


@dataclass(frozen=True)
class Case:
    """A pool to score with a model; `exemplars` is `(N,)`, the index of each sample's exemplar."""

    model: PreTrainedModel
    pool: Pool
    exemplars: np.ndarray
    config: MIWVConfig
    world: World

    @property
    def context(self) -> int:
        """Longest sequence that is forwarded."""
        return find_context_length(self.model, self.config)

    @cached_property
    def scorer(self) -> Scorer:
        """What scores the pool with the model. Made once: it looks at the free memory, which layouts change."""
        return prepare_scorer(self.model, self.pool, self.config, self.world)

    @property
    def scored(self) -> np.ndarray:
        """Indices of the samples that can be scored."""
        return np.flatnonzero(find_scorable(self.pool, self.exemplars, self.context))


def build_case(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: datasets.Dataset,
    draw: Draw,
    config: MIWVConfig,
) -> Case:
    """
    Draws samples and finds each one's exemplar among them, by the configuration's embedder.

    Raises:
        ValueError: more samples than there are, an embedder that reads no text, a pool outside the model's
            vocabulary, or no sample that can be scored.
    """
    if not (isinstance(config.embedder, str) and get_embedder(config.embedder).reads_text):
        raise ValueError(
            f'`--embedder` must be "tfidf" or a sentence-transformers name or folder, but got "{config.embedder}".'
        )
    if draw.samples > len(rows) and not draw.lengths_only:
        raise ValueError(
            f"`--samples` is {draw.samples}, but the pool holds {len(rows)}: give at most so many, or "
            "`--lengths-only`, which draws lengths from them with replacement."
        )
    generator = np.random.default_rng(draw.seed)
    drawn = generator.choice(len(rows), draw.samples, replace=draw.lengths_only)
    chosen, source = np.unique(drawn, return_inverse=True)
    pool = pool_from_rows(rows.select(chosen), tokenizer, show_progress=True)
    context = find_context_length(model, config)
    exemplars, _ = find_nearest_exemplars(embed_texts(config.embedder, pool.texts), pool, context)
    if draw.lengths_only:
        vocabulary = model.config.get_text_config().vocab_size
        pool, exemplars = draw_random_pool(pool, exemplars, source, vocabulary, generator)
    check_model(model, pool)
    case = Case(model, pool, exemplars, config, World(0, 1, model.device))
    if not len(case.scored):
        raise ValueError(
            f"Not one of the {draw.samples} samples drawn can be scored in the {context} tokens of the model's "
            "context: draw more of them, or give another pool or model."
        )
    return case


def draw_random_pool(
    pool: Pool, exemplars: np.ndarray, source: np.ndarray, vocabulary: int, generator: np.random.Generator
) -> tuple[Pool, np.ndarray]:
    """
    Makes a pool of random tokens with the lengths of given samples, each of which may be drawn several times.

    Args:
        pool: The given samples.
        exemplars: `(M,)` their exemplars.
        source: `(N,)` the given sample whose lengths each new sample takes. Each given sample occurs at least once.
        vocabulary: Number of different tokens.
        generator: Source of the random numbers.

    Returns:
        The new pool and `(N,)` its exemplars. The exemplar of a copy of sample j is a random copy of j's exemplar, so
        that few exemplars serve many samples, as in the given pool.
    """
    masks = [pool.response_mask(j) for j in source.tolist()]
    offsets = np.cumsum([0, *map(len, masks)], dtype=np.int64)
    new_pool = Pool(
        preamble=generator.integers(vocabulary, size=len(pool.preamble), dtype=np.int32),
        tokens=generator.integers(vocabulary, size=offsets[-1], dtype=np.int32),
        is_response=np.concatenate(masks),
        offsets=offsets,
    )
    # The copies of sample j stand at order[starts[j]:starts[j + 1]].
    order = np.argsort(source, kind="stable")
    starts = np.searchsorted(source[order], np.arange(len(pool) + 1))
    wanted = exemplars[source]
    has_exemplar = wanted != NO_EXEMPLAR
    found = np.where(has_exemplar, wanted, 0)
    picked = order[generator.integers(starts[found], starts[found + 1])]
    return new_pool, np.where(has_exemplar, picked, NO_EXEMPLAR)


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark that scores a pool into a folder and selects from it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub name, folder, or folder with a GGUF file (default: the quickstart's)")
    parser.add_argument("--pool", help="hub name or file (default: alpaca_gpt4_1k)")
    parser.add_argument("--output", required=True, help="folder of the scores")
    parser.add_argument("--embedder", default="tfidf", help="what finds exemplars (default: %(default)s)")
    parser.add_argument("--fraction", type=float, default=0.05, help="share that is selected (default: %(default)s)")
    return parser


def read_pool(name: str | None) -> Rows:
    """The pool's rows. Raises `FileNotFoundError` if there is no such file."""
    if name is None and not DEFAULT_POOL.is_file():
        raise FileNotFoundError(
            f"The default pool, {DEFAULT_POOL.name}, is not beside the project: give `--pool FILE` with "
            "columns of a known format (docs/formats.md)."
        )
    return load_rows(name or str(DEFAULT_POOL))


def read_model(
    name: str | None, shape: str | None, dtype: str, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    A saved model on the device; or, with `shape`, random weights in that shape and the saved model's tokenizer.

    Args:
        shape: A name of `SHAPES`, or overrides of `LlamaConfig` as a JSON object.
    """
    name = name or str(_find_default_model())
    if shape is None:
        model, tokenizer = load_model(name, dtype)
        return model.to(device), tokenizer
    tokenizer = AutoTokenizer.from_pretrained(name)
    config = make_shape(shape, len(tokenizer)) if shape in SHAPES else parse_llama_config(shape)
    return make_random_model(config, dtype, device), tokenizer


def parse_llama_config(overrides: str) -> LlamaConfig:
    """
    Llama's configuration with the values of a JSON object; the defaults are those of the 7B model.

    Raises:
        ValueError: no JSON object, or keys that the configuration does not have.
    """
    try:
        values = json.loads(overrides)
    except json.JSONDecodeError as error:
        raise ValueError(f"`--random-llama` must be a JSON object, but {overrides!r} is no JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"`--random-llama` must be a JSON object such as {{}}, but got {overrides!r}.")
    allowed = LlamaConfig().to_dict()
    unknown = sorted(values.keys() - allowed.keys())
    if unknown:
        raise ValueError(
            f"`--random-llama` has keys that LlamaConfig does not: {', '.join(unknown)}. Allowed are its own, such as "
            "hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, vocab_size."
        )
    return LlamaConfig(**values)


def _find_default_model() -> Path:
    """The quickstart's SmolLM2-135M-Instruct."""
    # Imported late: the quickstart imports peft and the Trainer, which a model of one's own does not need.
    from quickstart import find_default_model

    return find_default_model()
