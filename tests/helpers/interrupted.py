"""Rounds that are killed after some forwards."""

from typing import Any


class Killed(BaseException):
    """Nothing in the library catches it."""


def counted(model: Any, most: float = float("inf")) -> list[int]:
    """Tokens of every forward from now on, of which the one after `most` is the last."""
    seen: list[int] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        if len(seen) >= most:
            raise Killed
        seen.append(kwargs["input_ids"].numel())

    model.register_forward_pre_hook(note, with_kwargs=True)
    return seen
