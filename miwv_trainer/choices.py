"""What a setting may be where it is one of a few names, what a preset sets, and which settings decide a selection."""

from typing import Literal, get_args

RescoreStrategy = Literal["no", "epoch", "steps"]
Layout = Literal["auto", "tree", "padded"]
Attention = Literal["segments", "blocks", "mask", "varlen"]
AttentionChoice = Literal["auto", Attention]
# The records of the scores are in selection/scores.py, which imports the configuration. So that its checks need name
# no score, the properties they depend on are types here; a test holds the records to them.
UnorderedScore = Literal["random"]  # says nothing about how hard a sample is
ForwardFreeScore = Literal[UnorderedScore, "longest", "column"]  # needs no loss
ExemplarScore = Literal["influence"]  # of samples as exemplars, so that more exemplars give more samples a value
MeasuredScore = Literal["miwv", "low_miwv", "residual_miwv", "zero_shot_loss", "one_shot_loss", "ifd", "influence"]
ScoreName = Literal[MeasuredScore, ForwardFreeScore]
ExtraLosses = Literal["none", "zero_shot", "both"]
SelectionBudget = Literal["samples", "tokens"]
SelectionKind = Literal["top", "sample"]
Diversity = Literal["none", "facility_location", "mmr"]
EpochOrder = Literal["shuffled", "easy_to_hard", "hard_to_easy"]
Preset = Literal["none", "paper", "guarded"]
Match = Literal["tokens", "rows"]
# In which a model may be loaded, by torch's names; `miwv score --dtype`, which is no setting of a Trainer's run.
DTYPES = ("float32", "bfloat16")
CHOICES: dict[str, tuple[str, ...]] = {
    "rescore_strategy": get_args(RescoreStrategy),
    "score": get_args(ScoreName),
    "extra_losses": get_args(ExtraLosses),
    "selection_budget": get_args(SelectionBudget),
    "preset": get_args(Preset),
    "selection": get_args(SelectionKind),
    "diversity": get_args(Diversity),
    "epoch_order": get_args(EpochOrder),
    "layout": get_args(Layout),
    "match": get_args(Match),
    "attention": get_args(AttentionChoice),
}
# The descriptions of `preset` list these values for people; a test compares the two.
PRESETS: dict[str, dict[str, object]] = {
    "none": {},
    "paper": {"allow_identical_exemplars": True},
    "guarded": {"selection_budget": "tokens", "loss_band": [0.0, 0.7], "max_selected_similarity": 0.95},
}
# What decides, together with the scores, which samples a round selects. Each of them is an option of `miwv score` and
# `miwv select`, and part of a round's fingerprint: a resumed run refuses rounds that were selected otherwise.
SELECTION_FIELDS = (
    "score",
    "score_column",
    "extra_losses",
    "min_response_tokens",
    "quantile_band",
    "loss_band",
    "min_similarity",
    "max_selected_similarity",
    "length_bands",
    "selection_budget",
    "group_column",
    "selection",
    "temperature",
    "diversity",
    "diversity_candidates",
    "mmr_weight",
)
