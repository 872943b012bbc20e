"""Exemplars that tell little are said in the log, in round.json and on the page."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from miwv_trainer import MIWVConfig
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.distributed.world import World
from miwv_trainer.report.page import write_page
from miwv_trainer.rounds.exemplars import find_exemplars
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring.scorer import prepare_scorer
from miwv_trainer.storage.store import Store
from tests.helpers.tiny import instruction_rows, tiny_model, tiny_tokenizer

COUNT = 24


@pytest.mark.parametrize("is_degenerate", [True, False])
def test_a_warning_stands_where_people_look(
    is_degenerate: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generator = np.random.default_rng(0)
    vectors = np.eye(COUNT) if is_degenerate else generator.standard_normal((COUNT, 8))
    pool = pool_from_rows(instruction_rows(COUNT), tiny_tokenizer())
    config = MIWVConfig(fraction=0.2, embedder=vectors.astype(np.float32))
    store, scorer = Store(tmp_path), prepare_scorer(tiny_model(), pool, config, World(0, 1, torch.device("cpu")))
    with caplog.at_level(logging.WARNING):
        current = run_round(scorer, find_exemplars(scorer, store, reuse=False), store)
    written = json.loads((current.folder / "round.json").read_text())
    assert written["exemplars"]["share_without_similarity"] == (1.0 if is_degenerate else 0.0)
    page = write_page(tmp_path, [current], None)[0].read_text()
    warning = "100% of the samples have no similarity to any other"
    for place in (caplog.text, written.get("exemplar_warning", ""), page):
        assert (warning in place) == is_degenerate
