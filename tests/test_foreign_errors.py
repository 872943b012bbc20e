"""Errors of other libraries and of users' lines inside errors of ours: on one line, whatever they hold."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import transformers

from miwv_trainer import MIWVConfig
from miwv_trainer.cli import main as cli_module
from miwv_trainer.data.files import load_rows
from miwv_trainer.data.models import load_model
from miwv_trainer.foreign_errors import describe_error, quote_error, take_first_line
from miwv_trainer.selection.measured import Measured
from miwv_trainer.selection.scores import get_score
from tests.helpers.own_scores import in_several_lines

LINES = "columns do not match:\n    left: a\n\n    right: b\n"
JOINED = "columns do not match: left: a right: b"


def test_a_text_of_several_lines_becomes_one() -> None:
    assert quote_error(ValueError(LINES)) == JOINED
    assert describe_error(ValueError(LINES)) == f"ValueError: {JOINED}"
    assert take_first_line(ValueError(f"\n{LINES}")) == "columns do not match:"


def test_an_error_without_a_text_is_named_by_its_kind() -> None:
    assert (
        quote_error(MemoryError()) == describe_error(MemoryError()) == take_first_line(MemoryError()) == "MemoryError"
    )


def test_a_long_text_is_cut() -> None:
    assert quote_error(ValueError("x" * 300)) == "x" * 300
    assert quote_error(ValueError("x" * 301)) == "x" * 300 + "..."


def test_a_score_of_the_users_own_fails_on_one_line() -> None:
    score, values = get_score(MIWVConfig(score=in_several_lines)), np.ones(2, dtype=np.float32)
    with pytest.raises(ValueError, match=f"own_scores:in_several_lines failed: ValueError: {JOINED}$"):
        score.formula(Measured(values, values, values, np.ones(2, dtype=np.int32)))


def test_a_dataset_that_cannot_be_loaded_is_told_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError(LINES)

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(FileNotFoundError, match=f"could not be loaded from the hub .RuntimeError: {JOINED}."):
        load_rows("somebody/pool")
    (tmp_path / "pool.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=f"could not be read as parquet: {JOINED}$"):
        load_rows(str(tmp_path / "pool.parquet"))


def test_a_model_whose_error_has_no_text_is_told_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ImportError

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(OSError, match=r"No model could be loaded from 'somebody/model'.*\(ImportError\)$"):
        load_model("somebody/model", None)


def test_the_command_line_tells_any_error_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: object) -> None:
        raise RuntimeError(LINES)

    monkeypatch.setattr(cli_module, "run", fail)
    assert cli_module.main(["report", "--run", "somewhere"]) == 2
    assert capsys.readouterr().err == f"\nmiwv: {JOINED}\n"
