"""The configuration that a stored round was selected by, as `miwv select` and the report read it."""

from dataclasses import asdict
from pathlib import Path

from miwv_trainer.config import MIWVConfig
from miwv_trainer.rounds.stored_config import restore_config
from tests.helpers.rounds import made_columns, write_round


def test_a_preset_takes_the_place_of_the_earlier_one_and_leaves_what_was_asked_for(tmp_path: Path) -> None:
    config = MIWVConfig(preset="guarded", min_response_tokens=3, group_column="source")
    current = write_round(tmp_path, made_columns(4), [0, 1], **asdict(config))
    unchanged, plain = restore_config(current), MIWVConfig()
    assert unchanged.selection_budget == "tokens" and unchanged.loss_band == [0.0, 0.7]
    paper = restore_config(current, preset="paper", fraction=0.75)
    assert (paper.min_response_tokens, paper.group_column, paper.fraction) == (3, "source", 0.75)
    for name in ("selection_budget", "loss_band", "max_selected_similarity"):
        assert getattr(paper, name) == getattr(plain, name)
    assert paper.allow_identical_exemplars
