"""A prompt and its completion as plain text, as TRL's SFTTrainer tokenises such columns."""

from miwv_trainer.data.conversation import Conversation
from miwv_trainer.data.token_masks import RenderedText
from miwv_trainer.data.turns import get_text


def render_plain(conversation: Conversation, eos: str) -> RenderedText:
    """
    Joins a prompt and its completion.

    Args:
        eos: The text of the tokenizer's end-of-sequence token, which ends the completion.
    """
    prompt, completion = (get_text(message) for message in conversation.messages)
    if not completion.strip():
        return RenderedText(prompt + completion, [], adds_special_tokens=True)
    whole = prompt + completion.removesuffix(eos) + eos
    return RenderedText(whole, [(prompt, whole)], adds_special_tokens=True)
