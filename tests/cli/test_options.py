"""What is selected, typed on the command line."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from miwv_trainer import MIWVConfig
from miwv_trainer.choices import SELECTION_FIELDS
from miwv_trainer.cli.main import main
from miwv_trainer.cli.options import ScoreOptions, SelectOptions, parse_options
from tests.helpers.tiny import instruction_rows, save_tiny

ROWS = [{**row, "task": "ab"[index % 2]} for index, row in enumerate(instruction_rows(30))]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny(folder / "model")
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture(scope="module")
def scored(inputs: Path) -> Path:
    score(inputs, inputs / "scored", "--min-response-tokens", "8")
    return inputs / "scored"


def score(inputs: Path, output: Path, *options: str) -> None:
    command = ["score", "--model", inputs / "model", "--dataset", inputs / "pool.jsonl", "--output", output]
    assert main([*map(str, command), "--embedder", "tfidf", "--fraction", "0.2", *options]) == 0


def columns(output: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(output / "miwv" / "round-000" / "scores.parquet")
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def selected(output: Path) -> list[int]:
    rows = [json.loads(line) for line in (output / "selected.jsonl").read_text().splitlines()]
    return [ROWS.index(row) for row in rows]


@pytest.mark.parametrize("name", ["random", "longest"])
def test_a_score_that_needs_no_forward(name: str, inputs: Path, tmp_path: Path, capsys: Any) -> None:
    score(inputs, tmp_path, "--score", name, "--seed", "7")
    found = columns(tmp_path)
    assert np.isnan(found["miwv"].astype(float)).all()
    assert selected(tmp_path) == np.flatnonzero(found["selected"]).tolist()
    by_length = sorted(range(30), key=lambda index: (-found["response_tokens"][index], index))
    assert (selected(tmp_path) == sorted(by_length[:6])) == (name == "longest")
    assert f"Round 0 has no MIWV: its score is {name}." in capsys.readouterr().out


def test_seeds_draw_other_samples(inputs: Path, tmp_path: Path) -> None:
    drawn = []
    for number, seed in enumerate(("1", "1", "2")):
        score(inputs, tmp_path / str(number), "--score", "random", "--seed", seed)
        drawn.append(selected(tmp_path / str(number)))
    assert drawn[0] == drawn[1] != drawn[2]


def test_guards_are_typed(inputs: Path, scored: Path) -> None:
    found = columns(scored)
    may = np.flatnonzero(found["response_tokens"] >= 8)
    highest = may[np.argsort(-found["miwv"][may], kind="stable")][:6]
    assert 6 < len(may) < 30 and selected(scored) == sorted(highest.tolist())


def test_select_keeps_the_guards_of_the_run_but_for_what_is_typed(inputs: Path, scored: Path, tmp_path: Path) -> None:
    found = columns(scored)

    def select(*options: str) -> list[int]:
        shutil.copytree(scored, tmp_path / "copy", dirs_exist_ok=True)
        command = ["select", "--scores", str(tmp_path / "copy"), "--dataset", str(inputs / "pool.jsonl")]
        assert main([*command, *options]) == 0
        return selected(tmp_path / "copy")

    may = np.flatnonzero(found["response_tokens"] >= 8)
    kept = may[np.argsort(-found["miwv"][may], kind="stable")]
    assert select("--fraction", "0.1") == sorted(kept[:3].tolist())
    lowest = may[np.argsort(found["miwv"][may], kind="stable")]
    assert select("--fraction", "0.1", "--score", "low_miwv") == sorted(lowest[:3].tolist())
    everything = np.argsort(-found["miwv"], kind="stable")
    assert select("--fraction", "0.1", "--min-response-tokens", "0") == sorted(everything[:3].tolist())
    assert select("--fraction", "0.1", "--preset", "paper") == sorted(kept[:3].tolist())
    in_groups = select("--fraction", "0.2", "--group-column", "task")
    assert sorted(ROWS[index]["task"] for index in in_groups) == ["a"] * 3 + ["b"] * 3
    low, high = np.quantile(found["miwv"][may], [0.2, 0.8])
    band = [index for index in kept if low <= found["miwv"][index] <= high]
    assert select("--fraction", "0.1", "--quantile-band", "0.2", "0.8") == sorted(band[:3])
    assert len(select("--fraction", "0.2", "--diversity", "facility_location")) == 6


def test_select_says_what_the_scores_lack(inputs: Path, scored: Path, tmp_path: Path, capsys: Any) -> None:
    score(inputs, tmp_path, "--score", "random")
    assert main(["select", "--scores", str(tmp_path), "--fraction", "0.1", "--score", "miwv"]) == 2
    said = capsys.readouterr().err
    assert "have no one-shot losses and zero-shot losses, which `score='miwv'` needs: they were made with" in said
    assert main(["select", "--scores", str(tmp_path), "--fraction", "0.1", "--diversity", "mmr"]) == 2
    assert "There are no embeddings in" in capsys.readouterr().err
    assert main(["select", "--scores", str(scored), "--fraction", "0.1", "--group-column", "task"]) == 2
    said = capsys.readouterr().err
    assert "by groups, as `--group-column` 'task' says, which is a column of the pool: give that as `--dataset`" in said


REQUIRED = {"score": ["--model", "M", "--dataset", "D"], "select": ["--scores", "O", "--fraction", "0.1"]}
TYPED: dict[str, tuple[str, Any]] = {
    "score": ("--score longest", "longest"),
    "score_column": ("--score-column quality", "quality"),
    "extra_losses": ("--extra-losses both", "both"),
    "preset": ("--preset guarded", "guarded"),
    "min_response_tokens": ("--min-response-tokens 3", 3),
    "quantile_band": ("--quantile-band 0.1 1", [0.1, 1.0]),
    "loss_band": ("--loss-band 0 0.5", [0.0, 0.5]),
    "min_similarity": ("--min-similarity -0.5", -0.5),
    "max_selected_similarity": ("--max-selected-similarity 1", 1.0),
    "length_bands": ("--length-bands 4", 4),
    "selection_budget": ("--selection-budget samples", "samples"),
    "group_column": ("--group-column 7", "7"),
    "selection": ("--selection sample", "sample"),
    "temperature": ("--temperature 2", 2.0),
    "diversity": ("--diversity none", "none"),
    "diversity_candidates": ("--diversity-candidates 2", 2.0),
    "mmr_weight": ("--mmr-weight 0", 0.0),
}
ONLY_SCORING: dict[str, tuple[str, Any]] = {
    "fraction": ("--fraction 1", 1.0),
    "embedder": ("--embedder tfidf", "tfidf"),
    "sampler_seed": ("--seed 0", 0),
    "scoring_max_length": ("--max-length 9", 9),
    "tokens_per_batch": ("--tokens-per-batch 8", 8),
    "tokens_per_row": ("--tokens-per-row 7", 7),
    "logits_chunk": ("--logits-chunk 256", 256),
    "layout": ("--layout auto", "auto"),
    "attention": ("--attention segments", "segments"),
    "refine_near_threshold": ("--no-refine", False),
}

ON_BOTH = TYPED.keys() - {"extra_losses"}


def settings_of(command: str, typed: str) -> dict[str, Any]:
    options = parse_options([command, *REQUIRED[command], *typed.split()])
    assert isinstance(options, ScoreOptions | SelectOptions)
    return options.settings


def test_every_field_that_decides_the_selection_is_an_option_of_both_commands() -> None:
    assert set(TYPED) == {"preset", *SELECTION_FIELDS}
    for name, (typed, value) in TYPED.items():
        assert settings_of("score", typed) == {name: value}
        if name == "extra_losses":  # measured by forwards
            with pytest.raises(SystemExit):
                settings_of("select", typed)
        else:
            assert settings_of("select", typed) == {"fraction": 0.1, name: value}
        assert type(settings_of("score", typed)[name]) is type(value)


def test_how_a_pool_is_scored_is_an_option_of_one_command() -> None:
    for name, (typed, value) in ONLY_SCORING.items():
        assert settings_of("score", typed) == {name: value}
        if name != "fraction":
            with pytest.raises(SystemExit):
                settings_of("select", typed)


@pytest.mark.parametrize("command", ["score", "select"])
def test_what_is_not_typed_is_not_there(command: str) -> None:
    """Or else a default would overrule a preset, or what the round was selected by."""
    assert settings_of(command, "").keys() <= {"fraction"}


@pytest.mark.parametrize("command", ["score", "select"])
def test_help_describes_a_field_by_its_first_sentence_and_gives_the_default_where_it_is_in_force(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        parse_options([command, "--help"])
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    described = {name: text.summary for text in MIWVConfig.describe() for name in [text.name]}
    shown_here = {**TYPED, **ONLY_SCORING} if command == "score" else {n: t for n, t in TYPED.items() if n in ON_BOTH}
    for name, (typed, _) in shown_here.items():
        option = typed.split()[0]
        assert re.search(rf"{option} [^.]*{re.escape(described[name])}", shown), option
    assert ("(default: miwv)" in shown) == (command == "score")
    assert "==SUPPRESS==" not in shown


def test_a_value_that_no_field_takes_is_refused_with_the_option_named(capsys: pytest.CaptureFixture[str]) -> None:
    for typed, words in (
        ("--seed one", "argument --seed: invalid int value: 'one'"),
        ("--loss-band 0", "argument --loss-band: expected 2 arguments"),
        ("--score best", "argument --score: must be one of miwv, low_miwv, residual_miwv, "),
        ("--score longes", "or the name of a .npy file, but got 'longes' (did you mean longest?)"),
        (
            "--layout treee",
            "argument --layout: must be one of auto, tree, padded, but got 'treee' (did you mean tree?).",
        ),
        ("--attention segment", "varlen, but got 'segment' (did you mean segments?)."),
        ("--match row", "argument --match: must be one of tokens, rows, but got 'row' (did you mean rows?)."),
        ("--dtype float64", "argument --dtype: must be one of float32, bfloat16, but got 'float64'"),
        ("--preset nothing", "argument --preset: must be one of none, paper, guarded, but got 'nothing'."),
        ("--max-samples 0", "argument --max-samples: must be at least 1, but got 0"),
        ("--max-samples all", "argument --max-samples: must be at least 1, but got all"),
    ):
        with pytest.raises(SystemExit) as stopped:
            settings_of("score", typed)
        assert stopped.value.code == 2
        assert words in (said := capsys.readouterr().err)
        # In one line, as every other error of the command.
        assert said.startswith("miwv: ") and said.endswith("`miwv score --help` lists the options.\n")
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", r"the following arguments are required: \{score,select,report\}\. `miwv --help`"),
        ("scor", r"argument \{score,select,report\}: invalid choice: 'scor'.*`miwv --help`"),
        ("select --scores O", r"the following arguments are required: --fraction\. `miwv select --help`"),
        ("report", r"the following arguments are required: --run\. `miwv report --help`"),
        ("report --run O --html", r"unrecognized arguments: --html\. `miwv --help`"),
    ],
)
def test_what_no_command_takes_is_told_in_one_line(typed: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^2$"):
        main(typed.split())
    said = capsys.readouterr()
    assert re.fullmatch(rf"miwv: {words} lists the options\.\n", said.err) and not said.out


def test_the_place_is_called_as_it_was_typed_and_its_ending_is_a_format(
    inputs: Path, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["select", "--scores", str(scored), "--fraction", "0.1", "--dataset", str(inputs / "pool.jsonl")]
    for option, name in (("--to", "--to"), ("--output", "--output"), ("--out", "--output")):
        for typed in ([option, str(tmp_path / "chosen.csv")], [f"{option}={tmp_path / 'chosen.csv'}"]):
            assert main([*command, *typed]) == 2
            assert f"miwv: `{name}` must end in .jsonl with `--format jsonl`" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path), "--format", "jsonl"]) == 2
    assert "`--output` must end in .jsonl" in capsys.readouterr().err
    assert main([*command, "--output", str(inputs / "pool.jsonl")]) == 2
    assert "is the pool itself: give another file as `--output`" in capsys.readouterr().err
    assert main(["select", "--scores", str(scored), "--fraction", "0.1", "--output", "x.jsonl"]) == 2
    assert "`--output` is about samples: give the pool as `--dataset`" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path / "chosen.parquet")]) == 0
    assert main([*command, "--to", str(tmp_path / "chosen.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "chosen.jsonl").read_text().splitlines()]
    assert pq.read_table(tmp_path / "chosen.parquet").to_pylist() == rows and len(rows) == 3


def test_a_preset_is_blamed_in_the_words_that_were_typed(
    inputs: Path, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = f"score --model {inputs / 'model'} --dataset {inputs / 'pool.jsonl'} --output {tmp_path / 'none'}"
    assert main([*typed.split(), "--preset", "guarded", "--score", "random"]) == 2
    said = capsys.readouterr().err
    assert "miwv: The `--preset` 'guarded' sets `--loss-band` to [0.0, 0.7], but `score='random'` makes" in said
    assert main([*typed.split(), "--score", "random", "--loss-band", "0", "0.7"]) == 2
    assert "miwv: `--loss-band` is [0.0, 0.7], but" in capsys.readouterr().err
    shutil.copytree(scored, tmp_path / "copy")
    (tmp_path / "copy" / "miwv" / "embeddings.safetensors").unlink()
    again = ["select", "--scores", str(tmp_path / "copy"), "--fraction", "0.1"]
    assert main([*again, "--preset", "guarded"]) == 2
    assert "which `--max-selected-similarity` needs, set by the `--preset` 'guarded'" in capsys.readouterr().err
    assert main([*again, "--max-selected-similarity", "0.9"]) == 2
    assert "by which `--diversity` and `--max-selected-similarity` choose" in capsys.readouterr().err
    assert main([*again, "--preset", "guarded", "--max-selected-similarity", "1"]) == 0


def test_a_default_that_is_typed_beside_a_preset_is_kept(inputs: Path, tmp_path: Path) -> None:
    score(inputs, tmp_path, "--preset", "guarded", "--loss-band", "0", "1", "--max-selected-similarity", "1")
    config = json.loads((tmp_path / "miwv" / "round-000" / "round.json").read_text())["config"]
    assert (config["preset"], config["loss_band"]) == ("guarded", [0.0, 1.0])
    assert (config["max_selected_similarity"], config["selection_budget"]) == (1.0, "tokens")


def test_scores_of_the_version_before_are_reported_and_selected_from(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have neither `score` nor `age`, and their summary knows nothing of guards; a new run moves them aside."""
    score(inputs, tmp_path)
    miwv = columns(tmp_path)["miwv"]
    file = tmp_path / "miwv" / "round-000" / "scores.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["score", "age"]), file)
    summary = json.loads((file.parent / "round.json").read_text())
    for name in ("left_out", "statistics", "scored", "epochs"):
        del summary[name]
    for name in SELECTION_FIELDS:
        del summary["config"][name]
        summary["fingerprint"].pop(name)
    (file.parent / "round.json").write_text(json.dumps(summary))
    capsys.readouterr()
    assert main(f"select --scores {tmp_path} --fraction 0.5".split()) == 0
    printed = [int(line) for line in capsys.readouterr().out.split()]
    assert printed == sorted(np.argsort(-miwv, kind="stable")[:15].tolist())
    assert main(["report", "--run", str(tmp_path)]) == 0
    assert f"{miwv.max():.3f}" in capsys.readouterr().out
    score(inputs, tmp_path)
    assert "score" in columns(tmp_path) and (tmp_path / "miwv" / "previous-0" / "round-000").is_dir()


def test_a_seed_below_nothing_is_refused_in_the_words_that_were_typed(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = f"score --model {inputs / 'model'} --dataset {inputs / 'pool.jsonl'} --output {tmp_path} --seed -1"
    assert main(typed.split()) == 2
    assert "`--seed` must be a whole number of at least 0" in capsys.readouterr().err
