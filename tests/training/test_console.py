"""What a training run writes to its console: a line a round, bars on rank 0, and silence where it was asked for."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from miwv_trainer import MIWVConfig, attach
from miwv_trainer.distributed.world import World
from miwv_trainer.training.console import Console
from tests.helpers.trainers import noting_trainer

LINE = re.compile(r"(?:^|[\r\n])Round \d+: scored ")


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    logger, before = logging.getLogger("miwv_trainer"), transformers.logging.get_verbosity()
    level, root = logger.level, logging.getLogger().level
    logger.setLevel(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)
    yield
    logger.setLevel(level)
    logging.getLogger().setLevel(root)
    transformers.logging.set_verbosity(before)


def written(tmp_path: Path, capfd: pytest.CaptureFixture[str], embedder: str = "model", **options: object) -> str:
    """All that two rounds write to standard output and error."""
    trainer = noting_trainer(tmp_path, num_train_epochs=2, report_to="none", **options)
    attach(trainer, MIWVConfig(fraction=0.25, embedder=embedder, rescore_strategy="epoch"))
    capfd.readouterr()
    trainer.train()
    done = capfd.readouterr()
    return done.out + done.err


def test_a_line_a_round_and_bars_with_rates(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = written(tmp_path, capfd, disable_tqdm=False)
    assert len(LINE.findall(text)) == 2
    for bar in ("Scoring the pool", "Embedding the prompts with the model", "Finding exemplars"):
        assert f"{bar}: " in text
    assert re.search(r"Scoring the pool: 100%\|.*\[\d\d:\d\d<\d\d:\d\d, +[\d.]+[kM]? tokens/s\]", text)


@pytest.mark.parametrize("embedder", ["model", "tfidf"])
def test_disable_tqdm_silences_bars_and_lines(embedder: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = written(tmp_path, capfd, embedder, disable_tqdm=True)
    assert not LINE.search(text) and "\r" not in text
    assert "Scoring the pool" not in text and "exemplars" not in text


@pytest.mark.parametrize(("level", "lines"), [("error", 0), ("critical", 0), ("warning", 2), ("info", 2)])
def test_the_log_level_is_obeyed(
    level: str, lines: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    text = written(tmp_path, capfd, log_level=level, disable_tqdm=False)
    logged = [record for record in caplog.records if record.name.startswith("miwv_trainer")]
    if level == "info":
        text = "\n".join(record.message for record in logged)
    else:
        assert all(record.levelno >= getattr(logging, level.upper()) for record in logged)
    assert len(LINE.findall(text)) == lines


def test_a_log_that_takes_information_gets_the_line_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "miwv_trainer")
    text = written(tmp_path, capfd, disable_tqdm=False)
    assert len(LINE.findall("\n".join(record.message for record in caplog.records))) == 2
    assert not LINE.search(text)


def test_a_log_without_a_handler_is_no_place_to_write_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a script with `log_level="info"` that has set up no logging of its own."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger("miwv_trainer"), "level", logging.INFO)
    Console(shows=True).tell("Round 0: done.")
    assert capsys.readouterr().err == "Round 0: done.\n"
    Console(shows=False).tell("Round 0: done.")
    assert capsys.readouterr().err == ""


def test_only_rank_0_shows_progress() -> None:
    device = torch.device("cpu")
    assert World(0, 2, device).shows_progress
    assert not World(1, 2, device).shows_progress
    assert not World(0, 1, device, quiet=True).shows_progress
