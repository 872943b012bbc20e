"""The fields of scores, guards and budgets: what is refused, and what round.json can hold."""

import dataclasses
import json
import re

import numpy as np
import pytest

from miwv_trainer import MIWVConfig
from miwv_trainer.checks import is_nearly

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("name", ["tfidf", "model", "ab", "a"])
def test_a_text_is_nearly_a_name_if_one_change_of_a_letter_makes_it(name):
    """Against all texts of four letters' kinds that are two letters longer at most, changed in every way there is."""
    letters = "abtm"
    one = {name[:i] + x + name[i:] for i in range(len(name) + 1) for x in letters}
    one |= {name[:i] + name[i + 1 :] for i in range(len(name))}
    one |= {name[:i] + x + name[i + 1 :] for i in range(len(name)) for x in letters}
    one |= {name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in range(len(name) - 1)}
    two = {text[:i] + x + text[i:] for text in one for i in range(len(text) + 1) for x in letters}
    two |= {text[:i] + text[i + 1 :] for text in one for i in range(len(text))}
    assert all(is_nearly(text, name) for text in one | {name, name.upper(), f"-{name}_"})
    assert [text for text in two - one - {name} if is_nearly(text, name)] == []


def refuses(words: str, **values):
    with pytest.raises(ValueError, match=re.escape(words)):
        MIWVConfig(**values)


@pytest.mark.parametrize(
    "name, allowed",
    [
        ("selection_budget", "'samples', 'tokens'"),
        ("preset", "'none', 'paper', 'guarded'"),
        ("diversity", "'none', 'facility_location', 'mmr'"),
        ("epoch_order", "'shuffled', 'easy_to_hard', 'hard_to_easy'"),
    ],
)
@pytest.mark.parametrize("value", ["MIWV", "", None, 0, True, ["miwv"]])
def test_a_choice_names_all_that_are_allowed(name, allowed, value):
    refuses(f"`{name}` must be one of {allowed}, but got {value!r}.", **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "guess"),
    [
        ("score", "colum", "column"),
        ("score", "miwvs", "miwv"),
        ("layout", "trees", "tree"),
        ("preset", "guard", "guarded"),
    ],
)
def test_a_choice_that_is_nearly_one_is_guessed(name, value, guess):
    refuses(f"but got {value!r}. Did you mean {guess!r}?", **{name: value})


def test_a_score_by_column_asks_for_the_column():
    refuses('`score="column"` ranks by a column of the dataset: name it as `score_column`.', score="column")


@pytest.mark.parametrize("value", ["MIWV", "", None, 0, True, ["miwv"]])
def test_a_score_is_one_of_those_that_are_named_or_of_the_users_own(value):
    names = (
        "'miwv', 'low_miwv', 'residual_miwv', 'zero_shot_loss', 'one_shot_loss', 'ifd', 'influence', 'random', "
        "'longest', 'column'"
    )
    own = "" if isinstance(value, str) else ", a function, or an array of shape (N,) with one number a sample"
    given = "a list, which `numpy.asarray` turns into an array" if isinstance(value, list) else repr(value)
    refuses(f"`score` must be one of {names}{own}, but got {given}.", score=value)


@pytest.mark.parametrize("value", [0, -0.5, 1.01, NAN, INF, True, "0.5", None])
def test_shares_are_above_0_and_at_most_1(value):
    words = "must be a number above 0 and at most 1"
    refuses(
        f"`rescore_budget` {words} (0.25 scores a quarter of the pool), but got {value!r}.",
        rescore_strategy="epoch",
        rescore_budget=value,
    )
    refuses(
        f"`max_selected_similarity` {words} (a cosine; 1 leaves nothing out), but got {value!r}.",
        max_selected_similarity=value,
    )


@pytest.mark.parametrize(
    "name, allowed, values",
    [
        ("min_similarity", "from -1 to 1", [-1.01, 1.01, INF]),
        ("mmr_weight", "from 0 to 1", [-0.01, 1.01, -INF]),
        ("diversity_candidates", "of at least 1", [0.99, 0, -4, INF]),  # round.json could not hold infinity
    ],
)
def test_numbers_are_in_their_range(name, allowed, values):
    for value in [*values, NAN, True, "0.5", None, [0.5]]:
        refuses(f"`{name}` must be a number {allowed}, but got {value!r}.", **{name: value})


@pytest.mark.parametrize("name, least", [("min_response_tokens", 0), ("length_bands", 1)])
def test_counts_are_whole(name, least):
    for value in (least - 1, 1.5, 20.0, "20", True, None, NAN):
        refuses(f"`{name}` must be a whole number of at least {least}, but got {value!r}.", **{name: value})


@pytest.mark.parametrize(
    "value",
    [
        *([0.95, 0.0], [0.5, 0.5], [-0.1, 1], [0, 1.1], [NAN, 1], [0, INF], [0.5], [0, 0.5, 1], []),
        *(0.95, None, "01", ["0", "1"], [False, True], {0: 0, 1: 1}),
    ],
)
def test_a_quantile_band_is_two_ascending_numbers_from_0_to_1(value):
    refuses(
        "`quantile_band` must be two numbers from 0 to 1, the lower one first ([0, 0.95] leaves the highest 5 % out), "
        f"but got {value!r}.",
        quantile_band=value,
    )


@pytest.mark.parametrize("value", ["", 3, ["task"], True])
def test_a_group_column_is_a_name(value):
    refuses(f"`group_column` must be a column's name as text, but got {value!r}.", group_column=value)


@pytest.mark.parametrize("order", ["easy_to_hard", "hard_to_easy"])
def test_an_order_by_difficulty_needs_a_score_that_tells_it(order):
    refuses(
        f"`epoch_order='{order}'` needs to know how hard samples are, which `score=\"random\"` does not tell. Use "
        '"shuffled", or another score.',
        score="random",
        epoch_order=order,
    )
    assert MIWVConfig(score="random").epoch_order == "shuffled"
    assert MIWVConfig(score="longest", epoch_order=order).epoch_order == order


def test_a_budget_for_rescoring_needs_rescoring():
    refuses(
        '`rescore_budget` is 0.25, but nothing is scored again with `rescore_strategy="no"`. Leave it out, or set the '
        'strategy to "epoch" or "steps".',
        rescore_budget=0.25,
    )
    assert MIWVConfig(rescore_budget=1).rescore_budget == 1
    assert MIWVConfig(rescore_strategy="epoch", rescore_budget=0.25).rescore_budget == 0.25
    assert MIWVConfig(rescore_strategy="steps", rescore_steps=3, rescore_budget=0.25).rescore_budget == 0.25


def test_the_ends_of_every_range_are_accepted():
    for similarity, weight in ((-1, 0), (1, 1)):
        config = MIWVConfig(min_similarity=similarity, mmr_weight=weight, diversity_candidates=1, quantile_band=(0, 1))
        assert (config.min_similarity, config.mmr_weight, config.diversity_candidates) == (similarity, weight, 1)
        assert config.quantile_band == [0.0, 1.0]
    assert MIWVConfig(max_selected_similarity=1, length_bands=1, min_response_tokens=0) == MIWVConfig()


def test_what_is_done_to_one_configuration_is_not_done_to_the_next():
    MIWVConfig().loss_band[1] = 0.5
    assert MIWVConfig().loss_band == [0.0, 1.0]
    mine = [0.1, 0.9]
    config = MIWVConfig(quantile_band=mine)
    mine[0] = 0.5
    assert config.quantile_band == [0.1, 0.9]


def test_every_value_that_is_accepted_is_json():
    config = MIWVConfig(
        fraction=np.float32(0.25),
        rescore_strategy="epoch",
        rescore_budget=np.float64(0.5),
        quantile_band=(np.float32(0.25), 1),
        min_similarity=np.float32(0.125),
        max_selected_similarity=np.float16(0.5),
        diversity_candidates=np.int64(3),
        mmr_weight=1,
        embedder=np.zeros((3, 2)),
    )
    shown = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert (shown["fraction"], shown["rescore_budget"], shown["quantile_band"]) == (0.25, 0.5, [0.25, 1.0])
    assert (shown["min_similarity"], shown["max_selected_similarity"]) == (0.125, 0.5)
    assert (shown["diversity_candidates"], shown["mmr_weight"]) == (3, 1)
    assert set(shown) == {field.name for field in dataclasses.fields(MIWVConfig)}
