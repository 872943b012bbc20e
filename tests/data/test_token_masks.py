"""Texts encoded together, the beginnings they share once, against every text encoded whole and by itself."""

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from miwv_trainer.data.build import render
from miwv_trainer.data.common_prefix import count_common_prefix
from miwv_trainer.data.token_masks import RenderedText, encode
from miwv_trainer.data.turn_markers import TurnMarkers
from tests.helpers.templates import ALL, chat_tokenizer, newline_merging_tokenizer
from tests.helpers.tiny import CHATML, CHATML_TOKENS, instruction_rows, tiny_tokenizer

# What a tokenizer may merge, strip, or take for one of its own tokens where two of them meet.
FRAGMENTS = [
    "apples", "rivers", " planets", "a", "\n", "\n\n", " ", "  ", "\t", "é", "日本", "🙂", "'s", "user", "assistant",
    "<|im_start|>", "<|im_end|>", "<|im_", "end|>", "<|end|>", "<|assistant|>", "<think>", "</think>", "<bos>", "<s>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|im_start|>assistant\n", "x<mask>y", "<mask>", " <mask> ",
]  # fmt: skip
PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
POOLS = {
    "alpaca_gpt4_1k": ("instruction", "output"),
    "cherry_alpaca_3k": ("instruction", "output"),
    "code_alpaca_2k": ("instruction", "output"),
    "t0_50k": ("prompt", "completion"),
}


def apply(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], prompting: bool = False) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompting)


def rendered(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> RenderedText:
    answers = [turn for turn, message in enumerate(chat) if message["role"] == "assistant"]
    pairs = [(apply(tokenizer, chat[:turn], True), apply(tokenizer, chat[: turn + 1])) for turn in answers]
    return RenderedText(apply(tokenizer, chat), pairs)


def one_by_one(text: RenderedText, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """Each text in a call of its own, and prefixes by `os.path.commonprefix`."""
    whole = tokenizer(text.whole, add_special_tokens=False)["input_ids"]
    mask = [False] * len(whole)
    for pair in text.responses:
        start, end = (
            len(os.path.commonprefix([tokenizer(part, add_special_tokens=False)["input_ids"], whole])) for part in pair
        )
        mask[start:end] = [True] * (end - start)
    return whole, mask


def assert_same(texts: list[RenderedText], tokenizer: PreTrainedTokenizerBase) -> None:
    together = encode(texts, tokenizer, TurnMarkers())
    for text, (ids, is_response) in zip(texts, together, strict=True):
        assert (ids.tolist(), is_response.tolist()) == one_by_one(text, tokenizer), text


def odd_chats(count: int, seed: int = 0) -> list[list[dict[str, str]]]:
    generator = random.Random(seed)

    def words() -> str:
        return "".join(generator.choices(FRAGMENTS, k=generator.randint(1, 5)))

    return [
        [{"role": role, "content": words()} for _ in range(generator.randint(1, 3)) for role in ("user", "assistant")]
        for _ in range(count)
    ]


def sentencepiece_like(scheme: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    core.train_from_iterator(FRAGMENTS * 9, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    return with_markers(core)


def normalizing(normalizer: Any) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=320, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(FRAGMENTS * 9, trainer)
    return with_markers(core)


def with_markers(core: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": CHATML_TOKENS})
    tokenizer.chat_template = CHATML
    return tokenizer


def with_added(normalizer: Any = None, **options: bool) -> PreTrainedTokenizerFast:
    """Under a template of bare words, so a prompt's last added token is the user's and may reach into the answer."""
    tokenizer = tiny_tokenizer(PLAIN)
    tokenizer.backend_tokenizer.normalizer = normalizer
    for text in ("<mask>", "<|assistant|>", "apples", "<s>"):
        tokenizer.add_tokens(AddedToken(text, **{"normalized": False, **options}))
    return tokenizer


def with_markers_as_text() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(CHATML)
    tokenizer.split_special_tokens = True
    return tokenizer


TOKENIZERS = {
    "spaces marked at the first word": lambda: sentencepiece_like("first"),
    "spaces marked at every piece": lambda: sentencepiece_like("always"),
    "a space put before every piece": lambda: normalizing(normalizers.Prepend(" ")),
    "composed and lower case": lambda: normalizing(normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])),
    "stripped pieces": lambda: normalizing(normalizers.Strip()),
    "added tokens that take what stands left": lambda: with_added(lstrip=True),
    "added tokens that take what stands right": lambda: with_added(rstrip=True),
    "added tokens that are single words": lambda: with_added(single_word=True),
    "added tokens of the normalised text": lambda: with_added(normalizers.Prepend(" "), normalized=True),
    "a template that counts the turns first": lambda: tiny_tokenizer("{{ messages|length }}" + CHATML),
    "markers encoded as text": with_markers_as_text,
    "no fast tokenizer": lambda: ByT5Tokenizer(chat_template=CHATML),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_texts_encoded_together_are_texts_encoded_one_by_one_whatever_the_tokenizer(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    assert_same([rendered(tokenizer, chat) for chat in odd_chats(300)], tokenizer)


@pytest.mark.parametrize("make_tokenizer", [chat_tokenizer, newline_merging_tokenizer])
@pytest.mark.parametrize("name", ALL)
def test_texts_encoded_together_are_texts_encoded_one_by_one_whatever_the_template(name: str, make_tokenizer) -> None:
    tokenizer = make_tokenizer(name)
    assert_same([rendered(tokenizer, chat) for chat in odd_chats(300, seed=1)], tokenizer)


@pytest.mark.parametrize("name", ["smollm2", "llama3", "qwen3", "phi3"])
@pytest.mark.parametrize("pool", POOLS)
def test_real_rows_encoded_together_are_rows_encoded_one_by_one(pool: str, name: str, shared_data: Path) -> None:
    tokenizer = newline_merging_tokenizer(name)
    with gzip.open(shared_data / f"{pool}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(300), file, strict=False)]
    asked, answered = POOLS[pool]
    checked = 0
    columns = {"prompt": "prompt", "response": "completion"} if asked == "prompt" else None
    for row, (ids, is_response) in zip(rows, render(rows, tokenizer, columns=columns), strict=True):
        if not row[answered].strip():
            assert not is_response.any()
            continue
        question = f"{row[asked]}\n\n{row['input']}" if row.get("input", "").strip() else row[asked]
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": row[answered]}]
        assert (ids.tolist(), is_response.tolist()) == one_by_one(rendered(tokenizer, chat), tokenizer)
        checked += 1
    assert checked > 250


@pytest.mark.parametrize("name", ALL)
def test_of_a_prompt_only_what_follows_its_last_marker_is_encoded_again(name: str) -> None:
    encoded: list[str] = []

    class Listening(type(chat_tokenizer(name))):  # type: ignore[misc]
        def __call__(self, text: Any, **options: Any) -> Any:
            encoded.extend([text] if isinstance(text, str) else text)
            return super().__call__(text, **options)

    plain = chat_tokenizer(name)
    tokenizer = Listening(tokenizer_object=plain.backend_tokenizer)
    rows = [{"prompt": row["instruction"], "completion": row["output"]} for row in instruction_rows(50)]
    chats = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in rows
    ]
    texts = [rendered(plain, chat) for chat in chats]
    list(encode(texts, tokenizer, TurnMarkers()))
    again = encoded[len(texts) :]
    assert encoded[: len(texts)] == [text.whole for text in texts]
    assert not any(row["prompt"] in text for text in again for row in rows)


def test_an_added_token_that_only_the_answer_completes_is_none_of_the_prompts() -> None:
    core = Tokenizer(models.WordLevel({"green": 0, "greenapple": 1, "?": 2}, unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    tokenizer.add_tokens(AddedToken("apples", normalized=False))
    ((ids, is_response),) = encode(
        [RenderedText("greenapples", [("greenapple", "greenapples")])], tokenizer, TurnMarkers()
    )
    # The prompt by itself is "greenapple", and both together are "green", "apples".
    assert (ids.tolist(), is_response.tolist()) == ([0, 3], [True, True])


@pytest.mark.parametrize(
    "left, right, shared", [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 2], 2), ([1, 9, 3], [1, 2, 3], 1)]
)
def test_a_common_prefix_ends_where_one_list_does_or_the_two_differ(
    left: list[int], right: list[int], shared: int
) -> None:
    assert count_common_prefix(left, right) == count_common_prefix(right, left) == shared
