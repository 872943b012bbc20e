"""The data behind the page's table of samples: columns of every round and the pool's texts, in a bounded size.

The page is one file that is sent around and opened from disk, so it stays below 10 MB: large pools lose rows of the
table first, then early rounds, then the ends of long texts.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from miwv_trainer.report.embedded_json import encode_json, pack_json
from miwv_trainer.report.explanations import SELECTED, Explanations, explain_selection
from miwv_trainer.report.round_facts import find_selected
from miwv_trainer.report.shortening import CUT, measure_texts, replace_surrogates, shorten_texts
from miwv_trainer.report.texts import PoolTexts
from miwv_trainer.rounds.stored_config import restore_config
from miwv_trainer.selection.scores import get_score
from miwv_trainer.storage.stored_round import StoredRound

# A browser sorts and searches so many rows in 0.1 to 0.6 s.
MOST_ROWS = 60_000
MOST_BYTES_OF_ROUNDS = 12_000_000  # before compression
# About how many bytes of text take one byte of the page, compressed and in base64: where the search for a limit starts.
COMPRESSION = 3
DIGITS = 3  # of losses and scores, in nats
Numbers = list[float | None] | None  # None for a sample without a number; None for a column without any


class SampleColumns(TypedDict):
    """Columns of the table that are the same in all rounds, one entry a row. `report.js` reads them by these names."""

    index: list[int]
    exemplar: list[int]
    furtherExemplars: list[list[int]] | None
    similarity: Numbers
    responseTokens: list[int]


class RoundColumns(TypedDict):
    """One round's columns of the table and what is said of the round. `report.js` reads them by these names."""

    number: int
    score: str
    ranked: int
    numberSelected: int
    phrases: list[str]
    selected: int
    reason: list[int]
    rank: list[int]
    zeroShot: Numbers
    oneShot: Numbers
    miwv: Numbers
    ownScore: Numbers
    age: list[int] | None


def build_data(rounds: Sequence[StoredRound], texts: PoolTexts | None, room: int) -> tuple[str, list[str]]:
    """
    The table's columns and texts for `report.js`, packed, and a sentence for each thing that was left out of them.

    Args:
        rounds: Finished rounds, the last of which decides what has a row.
        texts: The pool's prompts and responses; None leaves them out.
        room: Most bytes of the packed data.
    """
    notes = []
    explanations = [explain_selection(current) for current in rounds]
    count, last = len(rounds[-1].scores), rounds[-1]
    rows = _choose_rows(rounds, explanations[-1])
    if len(rows) < count:
        notes.append(
            f"The table holds {len(rows):,} of {count:,} samples: those that the last round selected, then those that "
            "an earlier round selected, then those of highest rank. Counts of other rounds are over these rows."
        )
    encoded_rounds = _encode_rounds(rounds, explanations, rows)
    if len(encoded_rounds) < len(rounds):
        notes.append(f"The table holds the last {len(encoded_rounds)} of {len(rounds)} rounds, to keep the page small.")
    start = b'{"shared":%b,"rounds":[%b],"texts":' % (
        encode_json(_collect_sample_columns(last, rows)),
        b",".join(encoded_rounds),
    )
    if texts is None:
        notes.append("Texts are not shown, because the report was made without --dataset.")
        return pack_json(start + b"null}"), notes
    matters = _find_mattering(rounds[-len(encoded_rounds) :])[rows]
    shown = [side[index] for side in texts for index in rows.tolist()]
    data, note = _add_texts(start, shown, np.tile(matters, 2), room)
    return data, [*notes, *note]


def _choose_rows(rounds: Sequence[StoredRound], explanations: Explanations) -> np.ndarray:
    """`(n,)` ascending indices of the samples in the table: all, or the selected and those of highest rank."""
    ranks = np.where(explanations.ranks > 0, explanations.ranks, len(explanations.ranks) + 1)
    is_selected = [find_selected(current) for current in rounds]
    return np.sort(np.lexsort((ranks, ~np.any(is_selected, axis=0), ~is_selected[-1]))[:MOST_ROWS])


def _collect_sample_columns(last: StoredRound, rows: np.ndarray) -> SampleColumns:
    return {
        "index": rows.tolist(),
        "exemplar": last.column("exemplar")[rows].tolist(),
        "furtherExemplars": _list_further(last, rows),
        "similarity": _round_numbers(last.column("similarity")[rows]),
        "responseTokens": last.column("response_tokens")[rows].tolist(),
    }


def _list_further(last: StoredRound, rows: np.ndarray) -> list[list[int]] | None:
    """Each sample's exemplars beyond the nearest; None if each was scored behind one."""
    further = last.ranked("exemplar")[rows, 1:]
    return [[index for index in each if index >= 0] for each in further.tolist()] if further.shape[1] else None


def _encode_rounds(
    rounds: Sequence[StoredRound], explanations: Sequence[Explanations], rows: np.ndarray
) -> list[bytes]:
    """The columns of as many of the last rounds as have room, at least one, in the order of the rounds."""
    encoded: list[bytes] = []
    # From the last round back: the last one is what people open the page for.
    for current, explained in zip(reversed(rounds), reversed(explanations), strict=True):
        columns = encode_json(_collect_round_columns(current, explained, rows))
        if encoded and sum(map(len, encoded)) + len(columns) > MOST_BYTES_OF_ROUNDS:
            break
        encoded.append(columns)
    return encoded[::-1]


def _collect_round_columns(current: StoredRound, explained: Explanations, rows: np.ndarray) -> RoundColumns:
    score = get_score(restore_config(current))
    ages = current.column("age")
    return {
        "number": current.number,
        "score": score.ranking_label,
        "ranked": explained.number_ranked,
        "numberSelected": len(current.selection),
        "phrases": explained.phrases,
        "selected": explained.phrases.index(SELECTED),
        "reason": explained.codes[rows].tolist(),
        "rank": explained.ranks[rows].tolist(),
        "zeroShot": _round_numbers(current.column("zero_shot_loss")[rows]),
        "oneShot": _round_numbers(current.column("one_shot_loss")[rows]),
        "miwv": _round_numbers(current.column("miwv")[rows]),
        "ownScore": _round_numbers(explained.scores[rows]) if score.column is None else None,
        "age": ages[rows].tolist() if (ages > 0).any() else None,
    }


def _round_numbers(values: np.ndarray) -> Numbers:
    is_finite = np.isfinite(values)
    if not is_finite.any():
        return None
    # JSON has no NaN. Rounded first: float32 numbers in full would take three times the bytes.
    rounded = np.round(values.astype(np.float64), DIGITS).tolist()
    return [value if finite else None for value, finite in zip(rounded, is_finite.tolist(), strict=True)]


def _find_mattering(rounds: Sequence[StoredRound]) -> np.ndarray:
    """`(N,)` bool: which samples one of the rounds selected, or are the exemplar of one that was selected."""
    matters = np.any([find_selected(current) for current in rounds], axis=0)
    exemplars = rounds[-1].column("exemplar")[matters]
    matters[exemplars[exemplars >= 0]] = True
    return matters


def _add_texts(start: bytes, texts: list[str], matters: np.ndarray, room: int) -> tuple[str, list[str]]:
    """
    The packed data with as much of the texts as fits, and a note where texts were cut.

    Args:
        start: The JSON up to the texts.
        texts: Prompts, then as many responses.
        matters: `(n,)` bool, of the texts.
        room: Most bytes of the packed data.
    """
    texts = [replace_surrogates(text) for text in texts]
    half, sizes, size_without = len(texts) // 2, measure_texts(texts), len(pack_json(start))
    # How well texts compress is known only afterwards. So the budget starts from a guess and is corrected by the ratio
    # that came out, a little too far each time, until the data fit.
    budget = COMPRESSION * room
    while True:
        cut = shorten_texts(texts, sizes, matters, budget)
        data = pack_json(start + encode_json({"prompt": cut.texts[:half], "response": cut.texts[half:]}) + b"}")
        if len(data) <= room or budget == 0:
            break
        budget = int(budget * 0.96 * max(0, room - size_without) / (len(data) - size_without))
    if not any(text.endswith(CUT) for text in cut.texts):
        return data, []
    return data, [
        f"Long texts are cut to keep the page below 10 MB: texts of selected samples and of their exemplars at "
        f"{cut.limit:,} bytes, all others at {cut.limit_of_others:,}. A text that was cut ends in{CUT}. The search "
        "sees only what is shown."
    ]
