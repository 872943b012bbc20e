"""
A tokenizer's chat template: renders conversations, and shows by which tokens it marks turns.

A sample is rendered twice: its prompt with the generation prompt, and the whole conversation. The response is what the
whole holds after the part that both share. It includes the end of the turn, as in TRL's prompt/completion training,
which puts its loss there. Some templates (Qwen3, Phi-3, gpt-oss) render an earlier turn differently from the last one;
a sample is always rendered as the last.
"""

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from miwv_trainer.data.columns import Message, read_conversation
from miwv_trainer.data.map_style import Row
from miwv_trainer.data.token_masks import RenderedText, count_common_prefix
from miwv_trainer.data.turn_markers import TurnMarkers, make_blank_test, strip_blank_end


def render_chat(row: Row, tokenizer: PreTrainedTokenizerBase, markers: TurnMarkers) -> RenderedText:
    """Renders a row. A response is every assistant turn that is not given as part of the prompt and is not blank."""
    messages, given = read_conversation(row)
    whole = _apply(tokenizer, messages)
    if given:
        # A blank answer is no response: the loss of the end of the turn alone would say nothing of the sample.
        if not any(message["content"].strip() for message in messages[given:]):
            return RenderedText(whole, [])
        return RenderedText(whole, [(_apply(tokenizer, messages[:given], with_generation_prompt=True), whole)])
    responses: list[tuple[str, str | None]] = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant" or not message["content"].strip():
            continue
        before = _apply(tokenizer, messages[:turn], with_generation_prompt=True) if turn else ""
        # Where the response ends: with the whole text, at the next user's header, or where rendering up to here ends.
        next_role = messages[turn + 1]["role"] if turn + 1 < len(messages) else None
        if next_role is None:
            responses.append((before, whole))
        elif next_role == "user" and markers.user_header:
            responses.append((before, None))
        else:
            responses.append((before, _apply(tokenizer, messages[: turn + 1])))
    return RenderedText(whole, responses)


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
    end_of_turn = _encode(tokenizer, two_turns.partition(assistant)[2])
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
    )


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[Message], with_generation_prompt: bool = False) -> str:
    # Templates refuse roles or orders of turns by `raise_exception` (Gemma's refuses a system turn).
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=with_generation_prompt)
    except TemplateError as error:
        raise ValueError(f"The tokenizer's chat template refuses it: {error}") from error


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
