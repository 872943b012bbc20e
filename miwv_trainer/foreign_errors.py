"""The texts of errors that other libraries, or a user's own lines, have raised: on one line, inside errors of ours.

Many have several lines (pandas, the hub, torch), and some have none. A log and a terminal show an error of ours as one.
"""

MOST_LETTERS = 300


def join_lines(text: str) -> str:
    """The text with every white space as one blank."""
    return " ".join(text.split())


def quote_error(error: BaseException) -> str:
    """The text of an error on one line, cut after 300 characters; its kind if it has no text."""
    text = join_lines(str(error)) or type(error).__name__
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}..."


def describe_error(error: BaseException) -> str:
    """The kind and the text of an error, such as "KeyError: 'quality'"."""
    kind, text = type(error).__name__, quote_error(error)
    return kind if text == kind else f"{kind}: {text}"


def take_first_line(error: BaseException) -> str:
    """
    The first line of an error's text; its kind if it has no text.

    Of ten lines that transformers or torch write, the first says what is wrong.
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
