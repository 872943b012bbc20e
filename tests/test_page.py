"""The page of `miwv report`: what it says of each sample; a browser shows it and runs nothing of the pool."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miwv_trainer.charts import charts_of
from miwv_trainer.cli import main
from miwv_trainer.config import MIWVConfig
from miwv_trainer.drawing import legend, to_svg
from miwv_trainer.page import as_json, facts, reasons, response_text, shortened, table, write_page
from miwv_trainer.store import Store, StoredRound
from tests.tiny import instruction_rows

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium in PATH")
EVIL = '</script><script>document.title="owned"</script><img src=x onerror=\'document.title="owned"\'>&<!--DATA-->'


def a_round(
    folder: Path, miwv: Sequence[float], selected: Sequence[int], number: int = 0, **config: Any
) -> StoredRound:
    """A round of these scores, response lengths counting up from 1."""
    count = len(miwv)
    score = np.asarray(config.pop("scores", miwv), dtype=np.float32)
    is_selected = np.zeros(count, dtype=bool)
    is_selected[list(selected)] = True
    one_shot = np.asarray(miwv, dtype=np.float32) + 2
    columns = {
        "index": np.arange(count),
        "exemplar": np.roll(np.arange(count), 1),
        "similarity": np.linspace(0, 1, count, dtype=np.float32),
        "prompt_tokens": np.full(count, 7),
        "response_tokens": np.arange(1, count + 1),
        "zero_shot_loss": np.where(np.isnan(one_shot), np.nan, np.float32(2)),
        "one_shot_loss": one_shot,
        "miwv": np.asarray(miwv, dtype=np.float32),
        "selected": is_selected,
        "score": score,
        "age": np.zeros(count, dtype=np.int64),
    }
    summary = {
        "global_step": 5 * number, "number_selected": len(selected), "samples": count, "fraction": 0.5,
        "layout": "tree", "tokens_forwarded": 100, "seconds": 2.0, "samples_per_second": 3.0,
        "fingerprint": {"model": {"dtype": "float32"}},
        "config": MIWVConfig(fraction=0.5, embedder="tfidf", **config).to_dict(),
    }  # fmt: skip
    return Store(folder).write_round(number, columns, summary)


def embedded(page: Path) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(text)


def browse(page: Path, address: str = "", *options: str) -> str:
    """The document as it stands when its scripts have run."""
    assert BROWSER is not None
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", *options, "--dump-dom"]
    done = subprocess.run([*command, f"file://{page}{address}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    return done.stdout


def samples_shown(document: str) -> list[int]:
    return [int(number) for number in re.findall(r'<tr class="sample[^"]*"><td><button[^>]*>([\d,]+)', document)]


def rows_of(count: int) -> list[dict[str, str]]:
    rows = instruction_rows(count)
    rows[1] = {"instruction": EVIL, "input": EVIL, "output": EVIL}
    return rows


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    rounds = [a_round(folder, [0.1, 0.9, 0.5, -0.3, np.nan, 0.7], [1, 2, 5], 0)]
    rounds.append(a_round(folder, [0.6, 0.9, 0.2, -0.3, np.nan, 0.7], [0, 1, 5], 1))
    return write_page(folder / "report" / "index.html", rounds, charts_of(rounds), rows_of(6))


@needs_browser
def test_a_browser_shows_the_samples_text_and_runs_none_of_it(page: Path) -> None:
    document = browse(page, "", "--enable-logging=stderr", "--v=0")
    assert "<title>miwv report</title>" in document
    assert samples_shown(document) == [1, 5, 0, 2, 3, 4]
    shown = html.unescape(re.sub(r"<script.*?</script>", "", document, flags=re.DOTALL))
    assert shown.count(EVIL) >= 3
    assert "<img" not in document.replace("&lt;img", "").split('id="data"')[0]


@needs_browser
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("#q=owned", [1, 2]),  # sample 1 itself, and sample 2, whose example it is
        ("#sort=miwv&down=true", [1, 5, 0, 2, 3, 4]),
        ("#sort=response_tokens&down=true", [5, 4, 3, 2, 1, 0]),
        ("#sort=index", [0, 1, 2, 3, 4, 5]),
        ("#why=selected&sort=index", [0, 1, 5]),
        ("#q=no-such-text", []),
        ("#sort=no_such_column&page=9", [1, 5, 0, 2, 3, 4]),
    ],
)
def test_searching_filtering_and_sorting(page: Path, address: str, expected: list[int]) -> None:
    assert samples_shown(browse(page, address)) == expected


@needs_browser
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_it_fits_a_phone_in_both_colours(page: Path, colours: str, tmp_path: Path) -> None:
    measuring = (
        "<script>document.title = [document.documentElement.scrollWidth, innerWidth, "
        "getComputedStyle(document.body).backgroundColor].join(' ')</script></body>"
    )
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text().replace("</body>", measuring))
    scheme = f"--blink-settings=preferredColorScheme={1 if colours == 'light' else 0}"
    document = browse(copy, "", "--window-size=390,800", scheme)
    (title,) = re.findall("<title>(.*?)</title>", document)
    width, window, *background = title.split()
    assert int(width) <= int(window)
    assert (int(re.findall(r"\d+", " ".join(background))[0]) > 128) == (colours == "light")
    command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", scheme, "--window-size=390,800"]
    subprocess.run([*command, f"--screenshot={tmp_path / 'shot.png'}", f"file://{page}"], check=True, timeout=120)
    assert (tmp_path / "shot.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_loaded_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert policy in text
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import|https?://|innerHTML|fetch\(""", text.split('id="data"')[0])
    assert "innerHTML" not in text and "insertAdjacent" not in text


def test_json_in_a_script_element_cannot_end_it() -> None:
    text = as_json({"a": EVIL})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": EVIL}


def test_reasons_and_ranks_by_hand(tmp_path: Path) -> None:
    # Response lengths are 1 to 6: the guard leaves out samples 0 and 1, the best ones.
    miwv = [5.0, 4.0, 3.0, 2.0, np.nan, 1.0]
    why, ranks = reasons(a_round(tmp_path, miwv, [2], min_response_tokens=3))
    guard = "left out by min_response_tokens=3"
    unscored = "no finite loss, or no room for an example in the context"
    assert why == [guard, guard, "selected", "below the threshold", unscored, "below the threshold"]
    assert ranks.tolist() == [0, 0, 1, 2, 0, 3]


def test_a_better_sample_that_was_not_taken_was_passed_over(tmp_path: Path) -> None:
    why, _ = reasons(a_round(tmp_path, [4.0, 3.0, 2.0, 1.0], [0, 2], diversity="mmr"))
    assert why == ["selected", "passed over by diversity=mmr", "selected", "below the threshold"]


def test_guards_are_told(tmp_path: Path) -> None:
    told = facts(a_round(tmp_path, [4.0, 3.0, 2.0, 1.0], [0, 1], length_bands=2, min_similarity=0.1))
    assert told["guards"] == "min_similarity=0.1, length_bands=2"
    assert told["threshold"] == "MIWV 3.0000 and above"
    assert "guards" not in facts(a_round(tmp_path / "plain", [4.0, 3.0], [0]))


@pytest.mark.parametrize("score", ["random", "longest"])
def test_scores_without_losses_have_a_page(score: str, tmp_path: Path) -> None:
    nothing = [np.nan] * 4
    current = a_round(tmp_path, nothing, [1, 2], score=score, scores=[0.1, 0.9, 0.8, 0.2])
    charts = charts_of([current])
    assert [chart.key for chart in charts] == ["distribution", "cost"]
    data = embedded(write_page(tmp_path / "index.html", [current], charts, None))
    assert data["score"] == score and data["columns"]["rank"] == [4, 1, 2, 3]
    assert data["columns"]["miwv"] == [None] * 4


def test_the_distribution_counts_as_numpy_does(tmp_path: Path) -> None:
    miwv = np.random.default_rng(0).normal(size=500)
    selected = np.argsort(-miwv)[:50]
    chart = charts_of([a_round(tmp_path, miwv.tolist(), selected.tolist())])[0]
    everything, chosen, rule = chart.marks
    low, high = np.quantile(miwv.astype(np.float32), [0.005, 0.995])
    inside = ((miwv > low) & (miwv < high)).sum()
    assert everything.heights.sum() == 500 and chosen.heights.sum() == 50
    assert everything.heights[1:-1].sum() <= inside
    assert rule.at == pytest.approx(np.sort(miwv)[-50], abs=1e-6)
    assert chart.caption == f"{500 - inside} of 500 samples lie beyond the axis and are drawn at its ends."


def test_overlap_and_movement_of_two_rounds(tmp_path: Path) -> None:
    rounds = [a_round(tmp_path, [4.0, 3.0, 2.0, 1.0], [0, 1], 0), a_round(tmp_path, [4.0, 1.0, 3.0, 2.0], [0, 2], 1)]
    charts = {chart.key: chart for chart in charts_of(rounds)}
    assert charts["overlap"].marks[0].y.tolist() == [50.0]
    names = [mark.name for mark in charts["movement"].marks]
    assert names == ["in neither (1)", "left (1)", "entered (1)", "stayed (1)", "the same score"]
    assert table(rounds, None)["columns"]["rounds"] == ["0 1", "0", "1", ""]


def test_titles_and_names_are_escaped_in_charts(tmp_path: Path) -> None:
    chart = charts_of([a_round(tmp_path, [2.0, 1.0], [0])])[0]
    object.__setattr__(chart, "title", EVIL)
    object.__setattr__(chart, "x_label", EVIL)
    object.__setattr__(chart.marks[0], "name", EVIL)
    assert "<script" not in to_svg(chart) + legend(chart)


def test_texts_are_cut_to_a_budget_of_bytes() -> None:
    texts = [["a" * 100, "é" * 50, "<" * 30], ["b" * 10, "", "c"]]
    assert shortened(texts, np.arange(3), 10_000) == (0, texts)
    for budget in (100, 200, 300):
        length, cut = shortened(texts, np.arange(3), budget)
        assert len(as_json(cut).encode()) <= budget
        ends = [[text[: length + 1] + "…" * (len(text) > length + 1) for text in column] for column in texts]
        assert len(as_json(ends).encode()) > budget
    assert shortened(texts, np.array([1]), 40)[1][0][0] == texts[0][0]


def test_responses_of_every_kind_of_row() -> None:
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    assert response_text({"instruction": "i", "input": "", "output": "o"}) == "o"
    assert response_text({"prompt": "p", "completion": "c"}) == "c"
    assert response_text({"messages": [*turns, *turns]}) == "a\n\na"


def test_55185_samples_stay_below_ten_megabytes(tmp_path: Path) -> None:
    count = 55_185
    generator = np.random.default_rng(0)
    miwv = generator.normal(size=count)
    rounds = [a_round(tmp_path, miwv.tolist(), np.argsort(-miwv)[: count // 20].tolist())]
    rows = [{"prompt": "word " * 150, "completion": "é" * 200}] * count
    page = write_page(tmp_path / "index.html", rounds, charts_of(rounds), rows)
    assert page.stat().st_size < 10_000_000
    data = embedded(page)
    assert len(data["columns"]["miwv"]) == count
    assert data["cut"]["selected"] > data["cut"]["others"] > 20


def test_the_command_writes_page_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    a_round(tmp_path, [0.4, 0.3, 0.2, 0.1], [0, 1])
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows_of(4)))
    assert main(["report", "--run", str(tmp_path), "--dataset", str(pool)]) == 0
    printed = capsys.readouterr().out
    assert f"page: {tmp_path / 'report' / 'index.html'}" in printed
    names = {"distribution.png", "losses.png", "length.png", "similarity.png", "cost.png"}
    assert {path.name for path in (tmp_path / "report").glob("*.png")} == names
    assert all((tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG") for name in names)
    assert embedded(tmp_path / "report" / "index.html")["columns"]["prompt"][1] == f"{EVIL}\n\n{EVIL}"
