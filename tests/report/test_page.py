"""The page of `miwv report`, as a browser shows it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from miwv_trainer import read_rounds
from miwv_trainer.cli.main import main
from miwv_trainer.report.page import write_page
from miwv_trainer.report.shortening import CUT
from miwv_trainer.report.texts import PoolTexts
from miwv_trainer.selection.scores import SCORES
from tests.helpers.browser import Browser
from tests.helpers.rounds import highest, made_columns, write_round

COUNT = 130
EVIL = (
    '</script><script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'
    "<!-- <script> ]]> {{data}} {{script}} &lt; \u2028 \u2029 \x00 \U0001f600 </td></table></pre>"
)


def texts(count: int = COUNT) -> list[dict[str, str]]:
    rows = [{"prompt": f"Question {index} of mine", "completion": f"Answer {index}"} for index in range(count)]
    rows[3] = {"prompt": EVIL + " prompt", "completion": EVIL + " completion"}
    rows[17]["completion"] = "A Zebra crosses"
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds of a pool whose sample 3 would like to run; it is selected, and the exemplar of sample 2."""
    folder = tmp_path_factory.mktemp("run")
    first, second = made_columns(COUNT), made_columns(COUNT, seed=1)
    for columns in (first, second):
        columns["miwv"][3] = columns["score"][3] = 3.0
        columns["one_shot_loss"][3] = columns["zero_shot_loss"][3] + 3.0
        for name in ("zero_shot_loss", "one_shot_loss", "miwv", "score"):
            columns[name][[40, 41]] = np.nan
    for number, columns in enumerate((first, second)):
        write_round(folder, columns, highest(columns["miwv"], 10), number, group_column=EVIL)
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts()))
    assert main(["report", "--run", str(folder), "--dataset", str(folder / "pool.jsonl")]) == 0
    return folder


def address(run: Path, view: str = "") -> str:
    return (run / "report" / "index.html").as_uri() + view


def test_a_script_in_the_dataset_is_shown_and_not_run(run: Path, browser: Browser) -> None:
    browser.show(address(run, "#open=3"))
    assert browser.value("document.title") == "MIWV report"
    assert browser.value("document.querySelectorAll('img, iframe, object, link').length") == 0
    full = browser.texts("#samples tr.full pre")
    assert full[0] == EVIL + " prompt"
    assert full[1] == EVIL + " completion"
    browser.show(address(run, "#q=question 2 of&open=2"))
    assert browser.texts("#samples tr.full pre")[2:] == [EVIL + " prompt", EVIL + " completion"]
    # In HTML itself, unlike in JSON, there is no NUL.
    assert EVIL.replace("\x00", "") in browser.texts("dd")
    assert browser.value("document.title") == "MIWV report"


def test_the_page_asks_nothing_of_anyone_and_has_nothing_to_complain_of(run: Path, browser: Browser) -> None:
    browser.show(address(run))
    assert {url.split("#")[0] for url in browser.requested()} <= {"about:blank", address(run)}
    assert browser.complaints() == []
    page = (run / "report" / "index.html").read_text()
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", page)
    policy = browser.value("document.querySelector('meta[http-equiv]').content")
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_a_script_that_got_into_the_page_would_not_run(run: Path, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    page = (run / "report" / "index.html").read_text()
    changed = page.replace("<header>", '<script>document.title="owned"</script><header onclick="1">')
    (tmp_path / "report" / "index.html").write_text(changed)
    browser.show(address(tmp_path))
    assert browser.value("document.title") == "MIWV report"
    assert any("Content Security Policy" in json.dumps(one) for one in browser.complaints())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window_in_light_and_dark(
    scheme: str, width: int, run: Path, browser: Browser, tmp_path: Path
) -> None:
    browser.show(address(run, "#open=3"), width, scheme)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("innerWidth") == width
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    ink = browser.value("getComputedStyle(document.body).color")
    bright, inked = (sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in (background, ink))
    assert (bright > 0.9 and inked < 0.25) if scheme == "light" else (bright < 0.2 and inked > 0.8)
    browser.screenshot(tmp_path / f"{scheme}-{width}.png")
    assert (tmp_path / f"{scheme}-{width}.png").stat().st_size > 20_000


def test_no_label_of_a_chart_covers_another_or_leaves_its_chart(run: Path, browser: Browser) -> None:
    for width in (1280, 390):
        browser.show(address(run), width)
        assert len(browser.texts("figure")) == 8
        bad = browser.value("""[...document.querySelectorAll("figure")].flatMap((figure) => {
          const labels = figure.querySelectorAll("svg text, .legend li");
          const all = [...labels].map((one) => [one.textContent, one.getBoundingClientRect()]);
          const frame = figure.getBoundingClientRect();
          return all.flatMap(([text, a], i) => [
            ...(a.left < frame.left - 1 || a.right > frame.right + 1 || a.bottom > frame.bottom + 1 ? [text] : []),
            ...all.slice(i + 1).filter(([, b]) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3
              && b.top < a.bottom - 3).map(([other]) => `${text} / ${other}`)]);
        })""")
        assert bad == []
        # Of 130 samples each is seen: its dot is at least 3 px wide on the screen.
        dots = browser.value("""[...document.querySelectorAll(".dots")].map((one) =>
          Number.parseFloat(getComputedStyle(one).strokeWidth) * one.ownerSVGElement.getScreenCTM().a)""")
        assert len(dots) == 8 and min(dots) >= 3


def test_a_table_that_is_wider_than_its_window_is_shaded_where_it_goes_on(run: Path, browser: Browser) -> None:
    browser.show(address(run), 390)
    table = "document.querySelector('.rounds').parentElement"
    assert browser.value(f"{table}.scrollWidth > {table}.clientWidth")
    assert browser.value(f"getComputedStyle({table}).backgroundAttachment") == "local, local, scroll, scroll, scroll"


def test_searching_sorting_and_filtering_by_the_address(run: Path, browser: Browser) -> None:
    browser.show(address(run, "#q=zebra"))  # the response of 17, which is the exemplar of 16
    assert sorted(browser.column("index")) == ["16", "17"]
    browser.show(address(run, "#sort=miwv&dir=desc&round=0"))
    shown = [float(text) for text in browser.column("MIWV")]
    expected = made_columns(COUNT)["miwv"]
    expected[[3, 40, 41]] = 3.0, -np.inf, -np.inf
    np.testing.assert_allclose(shown, np.sort(expected)[::-1][:50], atol=5.1e-4)
    browser.show(address(run, "#show=selected&sort=index"))
    second = made_columns(COUNT, seed=1)["miwv"]
    second[[3, 40, 41]] = 3.0, -np.inf, -np.inf
    assert [int(text) for text in browser.column("index")] == sorted(np.argsort(-second)[:10].tolist())
    browser.show(address(run, "#reason=unscorable: no finite loss"))
    assert sorted(browser.column("index")) == ["40", "41"]
    assert browser.column("MIWV") == ["–", "–"]


def test_searching_sorting_and_turning_pages_by_hand(run: Path, browser: Browser) -> None:
    browser.show(address(run))
    assert browser.column("rank")[:2] == ["1", "2"] and len(browser.column("rank")) == 50
    assert browser.column("reason")[0] == "selected: rank 1 of 128 by MIWV"
    assert browser.column("reason")[10] == "below the threshold (rank 11; 10 selected)"
    browser.value("document.querySelector('#next').click()")
    assert browser.column("rank")[0] == "51"
    browser.value("document.querySelector('[data-key=miwv]').click()")
    assert browser.texts("th[aria-sort=descending]") == ["MIWV"]
    browser.value("document.querySelector('[data-key=miwv]').click()")
    assert browser.texts("th[aria-sort=ascending]") == ["MIWV"]
    ascending = [float(text) for text in browser.column("MIWV")]
    assert ascending == sorted(ascending) and len(set(ascending)) > 40
    browser.value("document.querySelector('#q').value = 'answer 77'")
    browser.value("document.querySelector('#q').dispatchEvent(new Event('input'))")
    browser.wait("location.hash.includes('q=answer')")
    assert sorted(browser.column("index")) == ["76", "77"]
    browser.value("document.querySelector('button[data-index=\"77\"]').click()")
    assert browser.texts("tr.full pre")[:2] == ["Question 77 of mine", "Answer 77"]
    assert browser.value("document.querySelector('[data-index=\"77\"]').ariaExpanded") == "true"


def test_without_a_dataset_the_table_shows_indices(tmp_path: Path, browser: Browser) -> None:
    columns = made_columns(20)
    path, _ = write_page(tmp_path, [write_round(tmp_path, columns, highest(columns["miwv"], 4))])
    browser.show(path.as_uri())
    assert "prompt" not in browser.texts("#samples thead th")
    assert browser.column("exemplar")[0] == str(columns["exemplar"][int(columns["miwv"].argmax())])
    assert not browser.value("document.querySelector('#round').checkVisibility()")  # there is one round
    assert "made without --dataset" in browser.value("document.body.textContent")


def test_a_table_that_holds_some_of_the_samples_says_so(
    tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miwv_trainer.report.page_data.MOST_ROWS", 60)
    columns = made_columns(COUNT)
    order = np.argsort(-columns["miwv"], kind="stable")
    chosen, before = [*order[:9], order[-1]], order[-3:-1]
    rounds = [write_round(tmp_path, columns, selection, number) for number, selection in enumerate((before, chosen))]
    pool = PoolTexts([f"What is {index} and one?" for index in range(COUNT)], [f"{i + 1}." for i in range(COUNT)])
    path, _ = write_page(tmp_path, rounds, pool)
    browser.show(path.as_uri())
    assert "The table holds 60 of 130 samples: those" in browser.value("document.body.textContent")
    assert browser.texts("#status")[0].startswith("60 of 60 samples.")
    browser.show(path.as_uri() + "#round=0&show=selected")
    assert browser.texts("#status")[0].startswith("2 of 60 samples.")
    lowest = order[-1]
    browser.show(path.as_uri() + f"#open={lowest}")  # is on the last page of the table, to which the address turns
    assert browser.texts("tr.full pre")[:2] == [pool.prompts[lowest], pool.responses[lowest]]
    assert browser.texts("#where") == ["page 2 of 2"]
    assert 0 < browser.value("document.querySelector('tr.full').getBoundingClientRect().top") < 800
    browser.show(path.as_uri() + f"#q=What is {order[57]} and")
    assert browser.column("MIWV") == []
    kept = {*order[:57].tolist(), *order[-3:].tolist()}
    lonely = next(index for index in kept if (index + 1) % COUNT not in kept)  # its exemplar is the sample after it
    browser.show(path.as_uri() + f"#open={lonely}")
    assert f"sample {(lonely + 1) % COUNT} is not in this table" in browser.value("document.body.textContent")


def test_a_page_without_room_for_all_texts_cuts_them_and_says_so(
    tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miwv_trainer.report.page.MOST_BYTES", 150_000)
    generator = np.random.default_rng(0)
    prompts = ["".join(generator.choice(list("abcdefghij klmnopqrst"), 2_000)) for _ in range(COUNT)]
    columns = made_columns(COUNT)
    path, _ = write_page(tmp_path, [write_round(tmp_path, columns, [5])], PoolTexts(prompts, prompts))
    assert 100_000 < path.stat().st_size < 155_000
    browser.show(path.as_uri() + "#open=50")
    shown = browser.texts("tr.full pre")[0]
    assert shown.endswith(CUT) and prompts[50].startswith(shown.removesuffix(CUT)) and len(shown) > 200
    browser.show(path.as_uri() + "#open=5")
    assert browser.texts("tr.full pre")[0] == prompts[5]
    text = browser.value("document.body.textContent")
    assert re.search(r"texts of selected samples and of their exemplars at [\d,]+ bytes", text)


def test_the_page_names_the_dataset_and_the_model_without_folders_and_the_round_of_its_time(tmp_path: Path) -> None:
    columns = made_columns(20)
    rounds = [write_round(tmp_path, columns, [1, 2], number) for number in range(2)]
    named = {**rounds[1].summary, "dataset": "somebody/rivers", "model": "/home/somebody/models/SmolLM2"}
    page = write_page(tmp_path, [rounds[0], replace(rounds[1], summary=named)])[0].read_text()
    assert '<p class="subtitle">somebody/rivers · SmolLM2 · float32 · layout tree</p>' in page
    assert "<b>30.0 s</b> <span>for 12,345 tokens of round 1</span>" in page


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_the_page_says_how_the_rows_were_laid_out_and_attended_to(layout: str, tmp_path: Path) -> None:
    old = write_round(tmp_path, made_columns(20), [1, 2])
    assert "attention" not in old.summary  # as versions before the entry wrote it
    page = write_page(tmp_path, [old])[0].read_text()
    assert "<dt>layout</dt><dd>tree</dd>" in page and "<dt>attention</dt>" not in page
    attention = "segments" if layout == "tree" else "none"
    new = replace(old, summary={**old.summary, "layout": layout, "attention": attention})
    page = write_page(tmp_path, [new])[0].read_text()
    assert f"<dt>layout</dt><dd>{layout}</dd></div><div><dt>attention</dt><dd>{attention}</dd>" in page


def lead(browser: Browser) -> str:
    return " ".join(browser.texts(".lead"))


def test_a_page_explains_what_was_ranked_and_shows_no_column_that_is_empty(tmp_path: Path, browser: Browser) -> None:
    columns = made_columns(20)
    for name in ("one_shot_loss", "miwv", "similarity"):
        columns[name][:] = np.nan
    columns["exemplar"][:] = -1
    columns["score"] = columns["response_loss"] = np.linspace(0.5, 0.9, 20, dtype=np.float32)
    pool = PoolTexts([f"What is {index}?" for index in range(20)], ["It is."] * 20)
    path, charts = write_page(tmp_path, [write_round(tmp_path, columns, range(4), score="ifd")], pool)
    browser.show(path.as_uri() + "#open=3")
    assert lead(browser).startswith("IFD (Instruction-Following Difficulty) is the perplexity")
    assert "MIWV" not in lead(browser)
    heads = browser.texts("#samples thead th")
    assert "exemplar" not in heads and {"prompt", "response", "IFD", "reason"} <= set(heads)
    assert browser.texts("tr.full h4") == ["Prompt", "Response"]
    assert browser.value("document.querySelector('#q').placeholder") == "prompt, response, index"
    assert charts[0].caption == "The 20 samples that were ranked by IFD."


@pytest.mark.parametrize("score", ["influence", "column"])
def test_another_score_beside_miwv_has_both_explained_and_all_columns_in_the_window(
    score: str, tmp_path: Path, browser: Browser
) -> None:
    columns = made_columns(60)
    columns["age"][:30] = 1
    name = {"score_column": "quality_of_the_teacher_v2"} if score == "column" else {}
    pool = PoolTexts([f"What is {index} " * 30 for index in range(60)], ["It is what it is. " * 30] * 60)
    rounds = [write_round(tmp_path, columns, range(9), number, score=score, **name) for number in range(2)]
    path, _ = write_page(tmp_path, rounds, pool)
    browser.show(path.as_uri())
    explained = "in the dataset's column 'quality_of_the_teacher_v2'" if name else "Influence is how much a sample"
    assert explained in lead(browser) and "MIWV is the loss of a sample's response when" in lead(browser)
    assert {"MIWV", "exemplar", "age (rounds)", "reason"} <= set(browser.texts("#samples thead th"))
    table = "document.querySelector('#samples').parentElement"
    assert browser.value(f"{table}.scrollWidth") <= browser.value(f"{table}.clientWidth")


def test_every_score_is_explained_in_sentences() -> None:
    for name, score in SCORES.items():
        assert score.meaning[0].isupper() and score.meaning.endswith("."), name
        assert ("MIWV" in score.meaning) == (name in ("miwv", "low_miwv", "residual_miwv"))


def test_a_drawn_selection_and_a_round_without_forwards_say_so(tmp_path: Path) -> None:
    columns = made_columns(20)
    drawn = write_round(tmp_path, columns, [1, 2], selection="sample", temperature=2.0)
    page = write_page(tmp_path, [drawn])[0].read_text()
    assert "<b>MIWV</b> <span>ranked by, then drawn</span>" in page and "<span>without a score</span>" in page
    none = replace(drawn, summary={**drawn.summary, "layout": "none", "tokens_forwarded": 0, "seconds": 0.002})
    page, charts = write_page(tmp_path, [none])
    assert "layout none" not in page.read_text().partition("<main>")[0]
    assert charts[-1].name == "cost" and charts[-1].y.high == 1.0


def test_the_page_says_whose_losses_it_shows(run: Path, tmp_path: Path) -> None:
    first, second = read_rounds(run)
    origin = {"folder": "runs/<small>", "model": "small", "dtype": "float32", "date": "2026-12-01", "match": "rows"}
    proxy = {"samples": 16, "rank_correlation": 0.61, "overlap": 0.5, "seconds": 2.0, "seconds_of_model": 30.0}
    first = replace(first, summary={**first.summary, "scores_from": origin, "proxy": proxy})
    write_page(tmp_path, [first, second])
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Round 0: losses read from runs/&lt;small&gt;, where small (float32) made them on 2026-12-01" in page
    assert "Round 0 is scored by a smaller model: on 16 samples rank correlation 0.61, 50% of the best in" in page
    write_page(tmp_path, [second])
    page = (tmp_path / "report" / "index.html").read_text()
    assert "losses read from" not in page and "smaller model" not in page
