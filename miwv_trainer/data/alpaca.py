"""Stanford Alpaca's text template, for tokenizers without a chat template (tatsu-lab/stanford_alpaca, train.py)."""

from miwv_trainer.data.conversation import Conversation, has_value
from miwv_trainer.data.token_masks import RenderedText
from miwv_trainer.data.turns import get_text, is_answer, is_blank

INTRODUCTION = (
    "Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
)
WITH_INPUT = ", paired with an input that provides further context"


def render_alpaca(conversation: Conversation, eos: str) -> RenderedText:
    """
    Renders a sample. A response is every assistant turn that is not given as part of the prompt and is not blank.

    Args:
        eos: The text of the tokenizer's end-of-sequence token, which ends every response.

    Raises:
        ValueError: the sample has a part that this template has no place for.
    """
    _check_parts(conversation)
    messages, given, task = conversation.messages, conversation.given, conversation.task
    whole, unanswered = "", list[str]()
    responses: list[tuple[str, str | None]] = []
    for turn, message in enumerate(messages):
        if not is_answer(message):
            unanswered.append(get_text(message))
            continue
        own_input = ""
        if task is not None and turn == len(messages) - 1:
            unanswered[-1], own_input = task
        before = whole + _render_prompt("\n\n".join(unanswered), own_input)
        unanswered = []
        whole = before + get_text(message) + eos
        if turn >= given and not is_blank(message):
            responses.append((before, whole))
    return RenderedText(whole, responses, adds_special_tokens=True, ends_once=True)


def _check_parts(conversation: Conversation) -> None:
    parts = {**conversation.variables, "tool_calls": [m for m in conversation.messages if m.get("tool_calls")]}
    for name, value in parts.items():
        if has_value(value):
            raise ValueError(
                f"The tokenizer has no chat template, and Alpaca's text has no place for `{name}`: remove it, or give "
                "a model with a chat template."
            )


def _render_prompt(instruction: str, own_input: str = "") -> str:
    introduction = INTRODUCTION.format(WITH_INPUT if own_input.strip() else "")
    section = f"\n\n### Input:\n{own_input}" if own_input.strip() else ""
    return f"{introduction}\n\n### Instruction:\n{instruction}{section}\n\n### Response:"
