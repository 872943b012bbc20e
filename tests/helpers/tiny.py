"""Tiny random models, a tokenizer made on the spot, and pools: what most tests run on."""

from pathlib import Path

import datasets
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    GPTNeoConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]

TOPICS = ("apples", "rivers", "sorting", "poems", "planets", "taxes", "chess", "bread", "glaciers", "verbs")
TASKS = ("Explain", "List three facts about", "Write a line on", "Compare two", "Define", "Translate", "Summarise")


def instruction_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Distinct `instruction/input/output` rows of uneven lengths."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        topic = TOPICS[index % len(TOPICS)]
        task = TASKS[(index // len(TOPICS)) % len(TASKS)]
        words = int(torch.randint(1, 14, (1,), generator=generator))
        answer = " ".join(TOPICS[(index + step * 3) % len(TOPICS)] for step in range(words))
        given = f"case {index}" if index % 3 == 0 else ""
        rows.append({"instruction": f"{task} {topic} {index}", "input": given, "output": answer})
    return rows


def tiny_tokenizer(
    chat_template: str | None = CHATML,
    special_tokens: list[str] | None = None,
    bos_token: str | None = None,
    eos_token: str = "<|im_end|>",
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the tiny pool's words; it can encode any text."""
    corpus = [f"{row['instruction']} {row['input']} {row['output']}" for row in instruction_rows(70)]
    specials = list(dict.fromkeys([*(special_tokens or CHATML_TOKENS), eos_token, *([bos_token] if bos_token else [])]))
    core = ByteLevelBPETokenizer()
    core.train_from_iterator(corpus, vocab_size=400, min_frequency=2, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core._tokenizer, eos_token=eos_token, pad_token=eos_token, bos_token=bos_token
    )
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_config(vocab_size: int = 512, **overrides: int | float) -> LlamaConfig:
    values = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "initializer_range": 0.3,  # large enough that losses differ clearly between samples
    }
    return LlamaConfig(**{**values, **overrides})


# Layers with a window of a name of their own: no trees.
LOCAL_WINDOWS = GPTNeoConfig(
    vocab_size=512, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=512, window_size=16,
    attention_types=[[["global", "local"], 1]],
)  # fmt: skip


def tiny_model(config: PretrainedConfig | None = None, seed: int = 0) -> PreTrainedModel:
    """A random float32 model, the same for the same seed; leaves the global random state alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config or tiny_config()).float().eval()


def tiny_dataset(count: int, seed: int = 0) -> datasets.Dataset:
    return datasets.Dataset.from_list(instruction_rows(count, seed))


def save_tiny(folder: Path) -> Path:
    """A folder with a tiny model and its tokenizer, as `from_pretrained` reads it."""
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
