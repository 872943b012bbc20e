"""Stanford Alpaca's text template, for tokenizers without a chat template (tatsu-lab/stanford_alpaca, train.py)."""

from miwv_trainer.data.columns import read_conversation
from miwv_trainer.data.map_style import Row
from miwv_trainer.data.token_masks import RenderedText

INTRODUCTION = (
    "Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
)
WITH_INPUT = ", paired with an input that provides further context"


def render_alpaca(row: Row, eos: str) -> RenderedText:
    """
    Renders a row. A response is every assistant turn that is not given as part of the prompt and is not blank.

    Args:
        eos: The text of the tokenizer's end-of-sequence token, which ends every response.
    """
    messages, given = read_conversation(row)
    # In a prompt/completion pair a column named `input` is something else, and must not reach the text.
    has_own_input = row.get("prompt") is None and row.get("messages") is None
    whole, unanswered = "", list[str]()
    responses: list[tuple[str, str | None]] = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            unanswered.append(message["content"])
            continue
        if has_own_input:
            before = whole + _render_prompt(row["instruction"], row.get("input") or "")
        else:
            before = whole + _render_prompt("\n\n".join(unanswered))
        unanswered = []
        whole = before + message["content"] + eos
        if turn >= given and message["content"].strip():
            responses.append((before, whole))
    return RenderedText(whole, responses)


def _render_prompt(instruction: str, own_input: str = "") -> str:
    introduction = INTRODUCTION.format(WITH_INPUT if own_input.strip() else "")
    section = f"\n\n### Input:\n{own_input}" if own_input.strip() else ""
    return f"{introduction}\n\n### Instruction:\n{instruction}{section}\n\n### Response:"
