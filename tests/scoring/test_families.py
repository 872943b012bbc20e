"""
Every causal family of transformers at default settings: losses of mixed lengths equal a plain forward of each sequence
alone, or the library refuses in a sentence of its own.

`MIWV_WRITE_FAMILIES=1` writes the table into docs/scoring.md.
"""

import os
from pathlib import Path

import pytest
import transformers

from miwv_trainer.scoring.attention import choose_tree_attention, find_tree_obstacle
from tests.helpers.families import CONTEXT, FAMILIES, Outcome, build_family, score_family
from tests.helpers.varlen import varlen_on_cpu

__all__ = ["varlen_on_cpu"]

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "scoring.md"
START, END = "<!-- families: start -->", "<!-- families: end -->"
PIECES = 10
TOLERANCE = 1e-3
# With the newest versions. Older ones cannot build more of them.
NEWEST, NOT_BUILT = "5.23.0", {"gemma4_assistant"}
ROWS: dict[str, str] = {}


@pytest.mark.slow
@pytest.mark.parametrize("piece", range(PIECES))
def test_losses_of_a_family_equal_a_plain_forward_or_it_is_refused(piece: int) -> None:
    wrong, not_built = [], set()
    for family in FAMILIES[piece::PIECES]:
        try:
            model = build_family(family)
        # Whatever transformers raises where generic sizes do not make a configuration.
        except Exception as error:
            ROWS[family] = f"| {family} | not built | {type(error).__name__} |"
            not_built.add(family)
            continue
        outcome = score_family(model)
        ROWS[family] = describe(family, outcome)
        print(ROWS[family])
        if not outcome.difference < TOLERANCE or not outcome.is_ours:
            wrong.append(ROWS[family])
    assert not wrong
    assert len(not_built) < len(FAMILIES[piece::PIECES]) / 2
    if transformers.__version__ == NEWEST:
        assert not_built <= NOT_BUILT


@pytest.mark.slow
@pytest.mark.parametrize("piece", range(PIECES))
def test_losses_of_a_family_by_variable_length_attention_equal_a_plain_forward(piece: int, varlen_on_cpu: None) -> None:
    wrong, taken = [], 0
    for family in FAMILIES[piece::PIECES]:
        try:
            model = build_family(family)
        except Exception:  # The test above says which.
            continue
        if find_tree_obstacle(model, CONTEXT) is not None or choose_tree_attention(model) != "varlen":
            continue
        outcome = score_family(model)
        taken += outcome.layout == "tree"
        print(describe(family, outcome))
        if not outcome.difference < TOLERANCE or not outcome.is_ours:
            wrong.append(describe(family, outcome))
    assert not wrong
    assert taken > 4


@pytest.mark.slow
def test_the_table_holds_every_family() -> None:
    if os.environ.get("MIWV_WRITE_FAMILIES") == "1" and len(ROWS) == len(FAMILIES):
        before, _, rest = GUIDE.read_text(encoding="utf-8").partition(START)
        table = ["| family | layout | largest difference in nats |", "|---|---|---:|", *map(ROWS.get, FAMILIES)]
        after = rest.partition(END)[2]
        GUIDE.write_text(f"{before}{START}\n" + "\n".join(map(str, table)) + f"\n{END}{after}", encoding="utf-8")
    text = GUIDE.read_text(encoding="utf-8")
    assert not [family for family in FAMILIES if f"| {family} |" not in text]


def describe(family: str, outcome: Outcome) -> str:
    if outcome.layout is None:
        return f"| {family} | refused | {outcome.reason} |"
    return f"| {family} | {outcome.layout} | {outcome.difference:.0e} |"
