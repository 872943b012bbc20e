"""
A tokenizer's chat template: renders conversations, and shows by which tokens it marks turns.

A sample is rendered twice: its prompt with the generation prompt, and the whole conversation. The response is what the
whole holds after the part that both share. It includes the end of the turn, as in TRL's prompt/completion training,
which puts its loss there. Some templates (Qwen3, Phi-3, gpt-oss) render an earlier turn differently from the last one;
a sample is always rendered as the last.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from miwv_trainer.data.common_prefix import count_common_prefix
from miwv_trainer.data.conversation import Conversation, has_value
from miwv_trainer.data.token_masks import RenderedText
from miwv_trainer.data.turn_markers import TurnMarkers, make_blank_test, strip_blank_end
from miwv_trainer.data.turns import FUNCTION_CALL, Message, get_text, is_answer, is_blank
from miwv_trainer.foreign_errors import quote_error

# `chat_template_kwargs` cannot set these: they say how a sample is rendered, not what the template writes.
RESERVED = ("add_generation_prompt", "continue_final_message", "tokenize", "return_dict", "return_tensors")


def render_chat(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, markers: TurnMarkers) -> RenderedText:
    """
    Renders a sample. A response is every assistant turn that is not given as part of the prompt and is not blank.

    Raises:
        ValueError: the template refuses it, or does not render a part of it.
    """
    given, variables = conversation.given, conversation.variables
    messages = _check_parts(conversation.messages, variables, tokenizer)
    apply = partial(_apply, tokenizer, variables=variables)
    whole = apply(messages)
    if not given:
        turns = [turn for turn, message in enumerate(messages) if is_answer(message) and not is_blank(message)]
        return RenderedText(whole, [_find_response(messages, turn, whole, apply, markers) for turn in turns])
    # A blank answer is no response: the loss of the end of the turn alone would say nothing of the sample.
    if all(is_blank(message) for message in messages[given:]):
        return RenderedText(whole, [])
    return RenderedText(whole, [(apply(messages[:given], with_generation_prompt=True), whole)])


def _find_response(
    messages: list[Message], turn: int, whole: str, apply: Callable[..., str], markers: TurnMarkers
) -> tuple[str, str | None]:
    """
    The text before an answer and the text up to its end, as `RenderedText` has them.

    Qwen3 renders the thoughts of the answers after the last question only, so where a tool is called, the beginning of
    a conversation is not the beginning of the whole. Then the place is found in the whole, by what changes there if the
    answer is another one.
    """
    before = apply(messages[:turn], with_generation_prompt=True) if turn else ""
    if turn == len(messages) - 1:
        return before, whole
    uses_tools = any(message["role"] == "tool" for message in messages)
    if uses_tools and turn and not whole.startswith(apply(messages[:turn])):
        before = whole[: _find_words(messages, turn, whole, apply)]
    if messages[turn + 1]["role"] == "user" and markers.user_header:
        return before, None
    through = apply(messages[: turn + 1])
    if uses_tools and not whole.startswith(through):
        end = whole.find(markers.end_of_turn.rstrip(), _find_words(messages, turn, whole, apply))
        through = whole[: end + count_common_prefix(whole[end:], markers.end_of_turn)] if end >= 0 else through
    return before, through


def _find_words(messages: list[Message], turn: int, whole: str, apply: Callable[..., str]) -> int:
    """Where the words of an answer begin in the whole."""
    other = "1" if get_text(messages[turn]).lstrip().startswith("0") else "0"
    changed = [*messages[:turn], {"role": "assistant", "content": other}, *messages[turn + 1 :]]
    return count_common_prefix(whole, apply(changed))


def find_turn_markers(tokenizer: PreTrainedTokenizerBase) -> TurnMarkers:
    """
    Finds the tokens that open a user's turn and those that follow it, by rendering a made-up conversation.

    Between an assistant's words and the next user's words, a template renders the end of one turn and the beginning of
    the next. The end is known from a conversation that stops there.
    """
    bos_only = TurnMarkers(bos=tokenizer.bos_token_id)
    if tokenizer.chat_template is None:
        return bos_only
    # Words without blanks around them, which templates strip, and none of which a template contains.
    user, assistant, next_user = "Alpha", "Beta", "Gamma"
    turns: list[Message] = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": assistant},
        {"role": "user", "content": next_user},
    ]
    try:
        three_turns, two_turns = _apply(tokenizer, turns), _apply(tokenizer, turns[:2])
        prompt = _apply(tokenizer, turns[:1], with_generation_prompt=True)
    except ValueError:
        # Some templates refuse a second user turn.
        return bos_only
    before = _encode(tokenizer, three_turns.partition(user)[0])
    between = _encode(tokenizer, three_turns.partition(assistant)[2].partition(next_user)[0])
    text_at_end = two_turns.partition(assistant)[2]
    end_of_turn = _encode(tokenizer, text_at_end)
    # Phi-3 adds EOS to the last turn; gpt-oss ends the last turn with another token than an earlier one.
    header = between[count_common_prefix(between, end_of_turn) or len(end_of_turn) :]
    # What opens the second user turn must open the first one too; else turns cannot be told by it.
    if not header or before[-len(header) :] != header:
        return bos_only
    generation_prompt = _encode(tokenizer, prompt.partition(user)[2])
    # A newline at the end of either may merge with the word that follows it, so the markers end before it.
    is_blank = make_blank_test(tokenizer)
    return TurnMarkers(
        user_header=tuple(strip_blank_end(header, is_blank)),
        generation_prompt=tuple(strip_blank_end(generation_prompt, is_blank)),
        bos=tokenizer.bos_token_id,
        end_of_turn=text_at_end,
    )


def render_generation_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that a template adds behind the user's turn, for the model to answer; empty where it adds none."""
    turns: list[Message] = [{"role": "user", "content": "Alpha"}]
    if tokenizer.chat_template is None:
        return ""
    try:
        without, with_prompt = _apply(tokenizer, turns), _apply(tokenizer, turns, with_generation_prompt=True)
    except ValueError:
        return ""
    return with_prompt.removeprefix(without) if with_prompt.startswith(without) else ""


def _check_parts(
    messages: list[Message], variables: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> list[Message]:
    """
    The turns with calls of functions as the template takes them.

    Raises:
        ValueError: the template has no place for a part of the sample, which would be left out in silence.
    """
    reserved = [name for name in RESERVED if name in variables]
    if reserved:
        raise ValueError(f"`chat_template_kwargs` sets {reserved[0]!r}, which says how to render: remove it.")
    template = variables.get("chat_template") or tokenizer.get_chat_template(tools=variables.get("tools"))
    for name in ("tools", "documents"):
        if has_value(variables.get(name)) and not _mentions(template, name):
            raise ValueError(
                f"The tokenizer's chat template does not render `{name}`: remove that column, or give a model whose "
                "template does."
            )
    renders_calls = _mentions(template, "tool_calls")
    if not renders_calls and any(message.get("tool_calls") for message in messages):
        raise ValueError(
            "The tokenizer's chat template does not render `tool_calls`: leave such samples out, or give a model whose "
            "template does."
        )
    return [_read_call(message, renders_calls) if message["role"] == FUNCTION_CALL else message for message in messages]


@functools.cache
def _mentions(template: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", template) is not None


def _read_call(message: Message, renders_calls: bool) -> Message:
    """LLaMA-Factory's call of a function, JSON text, as `tool_calls`; as text where the template renders none."""
    text = message["content"]
    try:
        calls = json.loads(text)
    except ValueError:
        calls = None
    calls = calls if isinstance(calls, list) else [calls]
    if not renders_calls or not all(isinstance(call, Mapping) and "name" in call for call in calls):
        return {**message, "role": "assistant"}
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": call} for call in calls]}


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    variables: Mapping[str, Any] = {},
    with_generation_prompt: bool = False,
) -> str:
    # Templates refuse roles or orders of turns by `raise_exception` (Gemma's refuses a system turn).
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=with_generation_prompt, **variables
        )
    except TemplateError as error:
        raise ValueError(f"The tokenizer's chat template refuses it: {quote_error(error)}") from error


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
