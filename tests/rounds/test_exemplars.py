"""What a round must compute before it can select, by its configuration."""

import numpy as np
import pytest

from miwv_trainer import MIWVConfig
from miwv_trainer.rounds.exemplars import embeds_text
from miwv_trainer.selection.scores import get_score, needs_exemplars


@pytest.mark.parametrize(
    "values, forwards, exemplars, embeddings",
    [
        ({}, True, True, False),
        ({"score": "residual_miwv"}, True, True, False),
        ({"score": "one_shot_loss"}, True, True, False),
        ({"score": "zero_shot_loss"}, True, False, False),
        ({"score": "zero_shot_loss", "min_similarity": 0.0}, True, True, False),
        ({"score": "random"}, False, False, False),
        ({"score": "longest"}, False, False, False),
        ({"score": "longest", "min_similarity": 0.3}, False, True, False),
        ({"preset": "guarded"}, True, True, True),
        ({"score": "random", "diversity": "mmr"}, False, False, True),
        ({"score": "longest", "diversity": "facility_location"}, False, False, True),
        ({"max_selected_similarity": 0.99}, True, True, True),
    ],
)
def test_what_is_needed_is_told_by_score_and_guards(values, forwards, exemplars, embeddings):
    config = MIWVConfig(**values)
    assert (get_score(config).needs_forwards, needs_exemplars(config)) == (forwards, exemplars)
    assert config.needs_embeddings == embeddings
    for embedder, is_of_text in (("tfidf", True), ("some/folder", True), ("model", False), (np.zeros((3, 2)), False)):
        looks = embeds_text(MIWVConfig(**values, embedder=embedder))
        assert looks == (is_of_text and (exemplars or embeddings))
