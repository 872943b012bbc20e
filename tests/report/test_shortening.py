"""Texts cut to fit a number of bytes."""

import json

import numpy as np
import pytest

from miwv_trainer.report.shortening import CUT, LONGEST, WEIGHT, measure_texts, replace_surrogates, shorten_texts


def json_bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode())


def test_texts_that_matter_are_cut_last() -> None:
    given = ["é" * 400, "<b>" * 200, "short", "\n" * 300]
    shortened = shorten_texts(given, measure_texts(given), np.asarray([True, False, False, False]), 600)
    texts = shortened.texts
    assert shortened.limit == 8 * shortened.limit_of_others
    assert sum(map(json_bytes, texts)) <= 600
    assert texts[2] == "short" and texts[1].endswith(CUT) and texts[3].endswith(CUT)
    assert given[1].startswith(texts[1].removesuffix(CUT))
    assert shorten_texts(given, measure_texts(given), np.zeros(4, dtype=bool), 10_000).texts == given


def test_half_a_surrogate_pair_can_be_written() -> None:
    assert replace_surrogates("a\ud83db") == "a?b" and replace_surrogates("\U0001f600") == "\U0001f600"


@pytest.mark.parametrize("budget", [200, 1_000, 5_000, 40_000])
def test_the_limit_is_the_largest_that_fits(budget: int) -> None:
    generator = np.random.default_rng(budget)
    texts = ["".join(generator.choice(list('a"é\n😀'), size)) for size in generator.integers(1, 2_000, 40)]
    matters = generator.random(40) < 0.25
    sizes = np.asarray([json_bytes(text) for text in texts])
    assert measure_texts(texts).tolist() == sizes.tolist()
    limit = shorten_texts(texts, sizes, matters, budget).limit_of_others

    def total(limit: int) -> int:
        return sum(min(size, limit * (WEIGHT if matter else 1)) for size, matter in zip(sizes, matters, strict=True))

    largest = next((limit for limit in range(LONGEST, 0, -1) if total(limit) <= budget), 0)
    assert limit == largest


def test_a_text_is_never_longer_than_its_limit_and_keeps_its_beginning() -> None:
    texts = ["\x00" * 300, "😀" * 100, '"' * 400, "é\n" * 200]
    cut = shorten_texts(texts, measure_texts(texts), np.zeros(4, dtype=bool), 400)
    assert cut.limit_of_others == 100
    for text, given in zip(cut.texts, texts, strict=True):
        assert json_bytes(text) <= 100 and text.endswith(CUT) and given.startswith(text.removesuffix(CUT))
        assert json_bytes(text) > 80  # and as much of it as fits
