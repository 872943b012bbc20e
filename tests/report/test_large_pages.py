"""Pages of large pools: size, time and what is left out. `test_page.py` proves the rest on small ones."""

import re
import time
from pathlib import Path

import numpy as np
import pytest

from miwv_trainer.report.page import write_page
from miwv_trainer.report.shortening import CUT
from miwv_trainer.report.texts import PoolTexts
from tests.helpers.browser import Browser
from tests.helpers.rounds import highest, made_columns, write_round


@pytest.mark.slow
def test_a_pool_of_55185_samples_stays_below_10_megabytes(tmp_path: Path, browser: Browser) -> None:
    count = 55_185
    generator = np.random.default_rng(0)
    words = np.asarray([f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"])
    prompts = [" ".join(words[generator.integers(0, len(words), 150)]) for _ in range(count)]
    first, second = made_columns(count), made_columns(count, seed=1)
    rounds = [
        write_round(tmp_path, columns, highest(columns["miwv"], count // 20), number)
        for number, columns in enumerate((first, second))
    ]
    started = time.process_time()
    path, _ = write_page(tmp_path, rounds, PoolTexts(prompts, prompts))
    seconds = time.process_time() - started
    assert path.stat().st_size < 10_000_000
    assert seconds < 60
    browser.show(path.as_uri() + "#sort=miwv&page=1000")
    assert len(browser.column("MIWV")) == 50
    best = int(second["miwv"].argmax())
    browser.show(path.as_uri() + f"#open={best}")
    shown = browser.texts("tr.full pre")[0]
    assert shown.endswith(CUT.strip()) or shown == prompts[best]
    assert prompts[best].startswith(shown.removesuffix(CUT)) and len(shown) > 300
    assert re.search(
        r"selected samples and of their exemplars at [\d,]+ bytes", browser.value("document.body.textContent")
    )


@pytest.mark.slow
def test_a_pool_too_large_for_the_table_keeps_the_selected_and_the_highest(tmp_path: Path, browser: Browser) -> None:
    count, lowest = 70_000, 7
    columns = made_columns(count)
    columns["miwv"][lowest] = columns["score"][lowest] = columns["miwv"].min() - 1
    columns["one_shot_loss"][lowest] = columns["zero_shot_loss"][lowest] + columns["miwv"][lowest]
    chosen = np.append(highest(columns["miwv"], 699), lowest)  # below the threshold, as a stored selection may be
    order = np.argsort(-columns["miwv"], kind="stable")
    left_out = order[65_000]
    prompts = [f"What is {index} and one?" for index in range(count)]
    answers = [f"{index + 1}." for index in range(count)]
    lowest_before = order[-300:]  # selected by the round before, and of no rank now
    kept = {*order[:59_699].tolist(), *lowest_before.tolist(), lowest}
    lonely = next(index for index in chosen.tolist() if index + 1 not in kept)  # its exemplar is the sample after it
    before = write_round(tmp_path, columns, lowest_before[lowest_before != lowest])
    path, _ = write_page(tmp_path, [before, write_round(tmp_path, columns, chosen, 1)], PoolTexts(prompts, answers))
    assert path.stat().st_size < 10_000_000
    browser.show(path.as_uri() + "#sort=miwv")
    text = browser.value("document.body.textContent")
    assert (
        "The table holds 60,000 of 70,000 samples: those that the last round selected, then those that an earlier"
        in text
    )
    assert browser.texts("#status")[0].startswith("60,000 of 60,000 samples.")
    browser.show(path.as_uri() + "#round=0&show=selected")
    assert browser.texts("#status")[0].startswith("299 of 60,000 samples.")
    browser.show(path.as_uri() + f"#open={lowest}")
    assert browser.texts("tr.full pre")[:2] == [prompts[lowest], answers[lowest]]
    assert browser.texts("#where") == ["page 1,200 of 1,200"]
    assert 0 < browser.value("document.querySelector('tr.full').getBoundingClientRect().top") < 800
    browser.show(path.as_uri() + f"#q=What is {left_out} and")
    assert browser.column("MIWV") == []
    browser.show(path.as_uri() + f"#open={lonely}")
    assert f"sample {lonely + 1} is not in this table" in browser.value("document.body.textContent")
