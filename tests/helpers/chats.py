"""Conversations, the rows that hold them, and what a tokenizer makes of them in one call."""

import datasets
import pytest
import trl
from tokenizers.processors import TemplateProcessing

from miwv_trainer import tokenize
from miwv_trainer.compat import is_at_least, masks_prompts_of_conversations
from miwv_trainer.data.build import pool_from_tokenized
from miwv_trainer.data.pool import IGNORED_LABEL
from miwv_trainer.data.tokenized import RESPONSE_COLUMNS
from tests.helpers.tiny import tiny_config, tiny_model

REPEATS_EARLIER_TURNS = ["smollm2", "llama3", "qwen2_5", "gemma", "cohere"]


SHARED_SYSTEM = "Answer the user like a pirate."


OWN_SYSTEM = "You are number {}."


def with_system_turns(names, *systems):
    """Each template without a system turn and with each of these; Gemma's takes none."""
    return [(name, system) for name in names for system in (None, *systems) if name != "gemma" or system is None]


# The first four begin with the same words, which are the prompts' own.
INSTRUCTIONS = [
    "Explain to me what a user is",
    "Explain to me what rivers do",
    "Explain to me",
    "Explain to me what rivers do, and why\n",
    "\nStart on a new line",
    "\n\n  Start far below",
    " user",
    "  Two spaces",
    "naïve café, 日本語, 🙂",
    "ends in newlines\n\n",
    "tabs\tand\r\nreturns ",
]


RESPONSES = [
    "A calm sea.",
    " leading space",
    "\nleading newline",
    "trailing newline\n",
    "assistant and user",
    "höflich 🙏",
    "x",
    "two\n\nparagraphs",
    "\n\nfar below",
    "trailing space ",
    "y",
]


ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName a colour.\n\n### Response:"
)


ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nTranslate.\n\n### Input:\nbonjour\n\n### Response:"
)


ALPACA_ROWS = [
    {"instruction": "Name a colour.", "input": "", "output": "Red"},
    {"instruction": "Translate.", "input": "bonjour", "output": "Hello"},
]


def turn(role, content):
    return {"role": role, "content": content}


def conversations(system=None, instructions=INSTRUCTIONS, responses=RESPONSES):
    """One conversation each; `system` is a text that all share, or one that takes the sample's number."""
    return [
        ([turn("system", system.format(index))] if system else []) + [turn("user", user), turn("assistant", assistant)]
        for index, (user, assistant) in enumerate(zip(instructions, responses, strict=True))
    ]


def as_rows(chats):
    return [{"messages": chat} for chat in chats]


def one_call(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]


def one_text(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, tokenize=False)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def one_shot(pool, exemplar, index):
    return [*pool.preamble.tolist(), *pool.sample(exemplar).tolist(), *pool.sample(index).tolist()]


def response_ids(pool, index):
    return pool.sample(index)[pool.response_mask(index)].tolist()


def response_text(tokenizer, pool, index):
    return tokenizer.decode(response_ids(pool, index))


def stripped(texts):
    return [text.strip() for text in texts]


def pairs(count):
    return [(exemplar, index) for exemplar in range(count) for index in range(count) if exemplar != index]


def only_ids(dataset):
    """Token ids, and what says which of them are trained: labels, or masks before TRL 1.7."""
    return dataset.select_columns([name for name in ("input_ids", *RESPONSE_COLUMNS) if name in dataset.column_names])


def labels_of(row):
    """The labels of a row that SFTTrainer prepared. Before TRL 1.7 its collator makes them of the masks."""
    if "labels" in row:
        return row["labels"]
    masks = [row[name] for name in RESPONSE_COLUMNS if name in row]
    assert masks
    return [token if all(marks) else IGNORED_LABEL for token, *marks in zip(row["input_ids"], *masks, strict=True)]


def from_tokenized_rows(rows, tokenizer):
    """The pool and texts when no text column is left."""
    return pool_from_tokenized(only_ids(tokenize(datasets.Dataset.from_list(rows), tokenizer)), tokenizer)


def skip_if_masked_wrongly(rows):
    """Skips a test of prompts that are turns where SFTTrainer does not tell them from completions."""
    if not masks_prompts_of_conversations() and any(isinstance(row.get("prompt"), list) for row in rows):
        pytest.skip("TRL before 0.27.1 masks prompts of turns wrongly with transformers 5 (trl#4880)")


def sft_trainer(tmp_path, rows, tokenizer, **arguments):
    skip_if_masked_wrongly(rows)
    if isinstance(rows[0].get("tools"), str) and not is_at_least("trl", "0.29"):
        pytest.skip("before TRL 0.29 SFTTrainer takes no tools as text")
    dataset = datasets.Dataset.from_list(rows)
    if arguments.get("shuffle_dataset") and not is_at_least("trl", "0.27"):
        del arguments["shuffle_dataset"]
        dataset = dataset.shuffle(seed=42)
    args = trl.SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", bf16=False, **arguments)
    model = tiny_model(tiny_config(vocab_size=600))
    return trl.SFTTrainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)


def sft_dataset(trainer):
    """What an SFTTrainer trains. Where it trains all tokens, its collator makes the labels before TRL 1.16."""
    dataset = trainer.train_dataset
    if set(RESPONSE_COLUMNS) & set(dataset.column_names):
        return dataset
    return dataset.map(lambda row: {"labels": row["input_ids"]})


def find_trainer(name):
    """A Trainer of TRL by the beginning of its name; skips where the installed versions have or can make none."""
    is_broken = is_at_least("transformers", "5.0") and not is_at_least("trl", "0.29")
    if is_broken and name in ("DPO", "GRPO", "KTO"):
        pytest.skip(f"TRL before 0.29 has no {name}Trainer that works with transformers 5")
    if not hasattr(trl, f"{name}Trainer"):
        pytest.skip(f"this TRL has no {name}Trainer")
    return getattr(trl, f"{name}Trainer")


def add_special_tokens(tokenizer, single):
    names = [name for name in single.split() if name != "$A"]
    tokens = [(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=tokens)
    return tokenizer
