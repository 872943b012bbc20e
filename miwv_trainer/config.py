"""Every setting of the library, described and checked in one place.

Defaults are the paper's (Jiang et al., AAAI 2026, arXiv 2511.07074) where it names one: the embedder is BGE-large-en,
the pool is scored once. The default fraction is the 5 % at which the paper's selection was strongest on Alpaca.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import MISSING, Field, InitVar, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from miwv_trainer.checks import (
    check_attention,
    check_band,
    check_choice,
    check_embedder,
    check_number,
    check_resampling,
    check_rescore_steps,
    check_share,
    check_switch,
    check_text,
    check_whole_number,
    explain_band_without_losses,
    explain_match_without_source,
    explain_more_exemplars,
    explain_source_without_losses,
    refuse_unknown_keys,
)
from miwv_trainer.choices import (
    CHOICES,
    PRESETS,
    AttentionChoice,
    Diversity,
    EpochOrder,
    ExemplarScore,
    ExtraLosses,
    ForwardFreeScore,
    Layout,
    Match,
    Preset,
    RescoreStrategy,
    ScoreName,
    SelectionBudget,
    SelectionKind,
    UnorderedScore,
)
from miwv_trainer.descriptions import FieldDescription, describe_fields, with_help
from miwv_trainer.own_scores import check_own_score, describe_score

if TYPE_CHECKING:  # seconds to import, and `miwv --help` shows the settings without either
    import numpy as np
    import torch

DEFAULT_EMBEDDER = "BAAI/bge-large-en-v1.5"


class AppliedPreset(NamedTuple):
    """A preset that a configuration has applied, and the fields that it has set there."""

    name: str
    fields: tuple[str, ...]


@with_help
@dataclass
class MIWVConfig:
    """
    What to select and how to score.

    Usable with [`~transformers.HfArgumentParser`]: no name is one of `TrainingArguments` or of TRL's `SFTConfig`. The
    first sentence of each description is the help of its option; README and docs/configuration.md are made from them.

    Args:
        fraction: Share of the pool that is selected, above 0 and at most 1. Of N samples, `floor(fraction * N)` are
            selected, at least one.
        rescore_strategy: When the pool is scored again, by the model as trained so far. `"no"` scores once, before the
            first step; `"epoch"` again before every later epoch; `"steps"` again after every `rescore_steps` optimizer
            steps. A full rescore forwards about twice the tokens of the pool in trees, three times in padded rows.
        rescore_steps: Optimizer steps from one round to the next, with `rescore_strategy="steps"`. The new selection
            takes effect a few steps later, at the first sample that no dataloader can have drawn yet; round.json
            records where.
        rescore_budget: Share of the pool that a later round scores, above 0 and at most 1. Three fifths of it are the
            samples of highest last score, one fifth those unscored for longest, one fifth drawn at random. The other
            samples keep their scores, with their `age` in scores.parquet.
        score: What samples are ranked by, highest first. `"low_miwv"` takes the lowest MIWV first; `"residual_miwv"`
            is the part of MIWV that response length and exemplar similarity do not explain; `"ifd"` is the perplexity
            of the response over that of the response without its prompt, at most 1; `"influence"` is how much a sample
            lowers the losses of those that are scored behind it; `"longest"` takes the responses of most tokens first.
            `"random"` and `"longest"` need no forward. A score of your own is a function, an array of shape (N,) with
            one number a sample, or a `score_column`. A function gets a [`Measured`] and returns such an array; NaN
            leaves a sample out.
        score_column: Column of the dataset that holds a score of your own, highest first; `score` is then `"column"`.
            A sample without a number there is not selected.
        extra_losses: Losses that are measured although `score` does not need them. A `loss_band`, or a function as
            `score` that reads losses, needs `"zero_shot"`, or `"both"` for MIWV.
        selection_budget: What `fraction` is a share of: the samples of the pool, or its response tokens. An epoch has
            `floor(fraction * N)` samples in both cases; a larger selection is trained over several epochs.
        preset: Sets several fields that are not given. `"paper"` sets `allow_identical_exemplars=True`. `"guarded"`
            sets `selection_budget="tokens"`, `loss_band=[0.0, 0.7]` and `max_selected_similarity=0.95`. It is applied
            once, at construction; from an argument parser, fields at their defaults count as not given.
        min_response_tokens: Samples with fewer response tokens are not selected. Means over few tokens are noisy, so
            short responses gather at both ends of the ranking.
        quantile_band: Lowest and highest quantile of the scores that are selected from. The quantiles are taken over
            the samples that the other guards leave. Mislabelled samples gather at the very top.
        loss_band: Lowest and highest quantile of the zero-shot losses that are selected from. Responses that have
            nothing to do with their prompts have high losses.
        min_similarity: Samples whose exemplar is less similar (cosine) are not selected. An unrelated exemplar raises
            MIWV.
        max_selected_similarity: Of two samples whose prompts are more similar (cosine) than this, only the one of
            higher score is selected.
        length_bands: Number of bands of response length within which samples are ranked. The bands hold equal numbers
            of samples.
        group_column: Column of the dataset that names a sample's group; each group keeps its share of the pool in the
            selection.
        selection: Whether the samples of highest score are taken, or as many are drawn by rank. `"sample"` draws
            without replacement, those of higher rank with a higher probability, seeded by `sampler_seed` and the round.
        temperature: How far down the ranking `selection="sample"` draws. From one rank to the one `fraction` of the
            ranking further down, the probability of being drawn next falls by the factor `exp(1 / temperature)`.
        resample_each_epoch: Whether each epoch draws anew from the same scores, with `selection="sample"`. Nothing is
            scored for it; each draw is written as a round.
        diversity: How samples are chosen among those of highest score, by their embeddings. `"mmr"` is maximal
            marginal relevance.
        diversity_candidates: How many samples `diversity` chooses among, as a multiple of the selection's size.
        mmr_weight: Weight of the score against similarity to the samples selected already, from 0 to 1, with
            `diversity="mmr"`.
        epoch_order: Order of the samples within an epoch: shuffled, or by how hard they are. A sample of higher MIWV
            is harder; where `score` ranks by a loss or by length, one of higher loss or greater length.
        embedder: What decides which samples are similar: a sentence-transformers name or folder (extra `embed`),
            `"tfidf"`, `"model"`, or an array. `"tfidf"` needs no download; `"model"` takes the mean of the prompt's
            last hidden states in the model that is trained; an array has shape (N, d), one line per sample in pool
            order.
        exemplars_per_sample: How many exemplars each sample is scored behind, one at a time, with `score="influence"`:
            its nearest ones. More samples then have a value, at the price of one more pass over the pool's tokens for
            each further exemplar. Other scores compare each sample with its nearest exemplar and take 1.
        sampler_seed: Seed of the order within an epoch and of random draws; by default the Trainer's `data_seed`, else
            its `seed`, and 0 without a Trainer.
        scoring_max_length: Longest sequence that is forwarded, in tokens; by default the model's context, such as
            `max_position_embeddings`.
        tokens_per_batch: Most tokens of one scoring forward, padding included; by default what the free memory holds.
            A longer row is forwarded alone. The default is 4,096 on a CPU and 32,768 elsewhere, halved until it needs
            at most half of the free memory, and less for a small pool, so that several ranks get equal work.
        tokens_per_row: Most tokens of one row of trees; by default 4,096, and with masks 1,024 on a CPU and 2,048
            elsewhere. A longer sample is forwarded alone behind its exemplar. Longer rows repeat fewer trunks; where
            rows have masks, they spend more attention on masked pairs.
        logits_chunk: Number of positions whose logits are in memory at the same time.
        layout: How samples share a forward. `"padded"` has one sequence a row, sorted by length; `"tree"` puts the
            samples with the same exemplar behind one copy of it, which takes two thirds of the tokens and needs
            attention in every layer; `"auto"` takes trees where the model can, after scoring a few samples both ways.
        attention: How layers attend in rows of trees. `"varlen"` is one call of torch's variable-length attention, on a
            CUDA device in half precision; `"segments"` are calls of scaled dot product attention for each trunk and
            its branches; `"blocks"` are those of flex attention; `"mask"` is a mask for each row. `"auto"` takes the
            first of `"varlen"`, `"blocks"`, `"segments"` (on a CPU) and `"mask"` that the model can take. It has no
            effect on other rows.
        refine_near_threshold: Whether the samples near the selection's threshold are scored again in float32, where
            the model computes in lower precision. round.json says how many they were and what they cost.
        allow_identical_exemplars: Whether a copy of a sample may be its exemplar, as in the paper. Behind its own copy
            the loss of a sample collapses, so that neither of the two is ever selected.
        check_batches: Whether two samples are collated before scoring, and token ids and labels of some batches are
            compared, so that a dataset, loader or collator that fails, drops samples or gives other samples or labels
            stops the run.
        proxy_check: Samples that both score, where `attach` is given a smaller model as `scorer`; 0 for none.
            round.json says how far the two models agree and what each costs.
        proxy_warn_below: Rank correlation of the two models' scores below which a warning is logged.
        scores_dir: Folder that receives `miwv/`; by default the Trainer's `output_dir`.
        scores_from: Folder of another run (of a Trainer or of `miwv score`) whose round 0 is read instead of scored, if
            it is of the same pool. Nothing is forwarded, and exemplars come along. Fraction, score and guards may
            differ; later rounds are scored as configured.
        match: What makes the pool of `scores_from` the same. `"tokens"` compares token ids, labels and order; `"rows"`
            finds each sample by its text, so that a model with another tokenizer may have scored.

    Raises:
        TypeError: an unknown key.
        ValueError:
            a value out of range, or two that exclude each other; the message says what was given and what is allowed.
    """

    fraction: float = 0.05
    rescore_strategy: RescoreStrategy = "no"
    rescore_steps: int | None = None
    rescore_budget: float = 1.0
    score: ScoreName = "miwv"  # a function or an array is welcome too, but HfArgumentParser wants one plain type
    score_column: str | None = None
    extra_losses: ExtraLosses = "none"
    selection_budget: SelectionBudget = "samples"
    preset: Preset = "none"
    min_response_tokens: int = 0
    quantile_band: list[float] = field(default_factory=lambda: [0.0, 1.0], metadata={"nargs": 2})
    loss_band: list[float] = field(default_factory=lambda: [0.0, 1.0], metadata={"nargs": 2})
    min_similarity: float = -1.0
    max_selected_similarity: float = 1.0
    length_bands: int = 1
    group_column: str | None = None
    selection: SelectionKind = "top"
    temperature: float = 1.0
    resample_each_epoch: bool = False
    diversity: Diversity = "none"
    diversity_candidates: float = 4.0
    mmr_weight: float = 0.5
    epoch_order: EpochOrder = "shuffled"
    embedder: str = DEFAULT_EMBEDDER  # an array is welcome too, but HfArgumentParser wants one plain type
    exemplars_per_sample: int = 1
    sampler_seed: int | None = None
    scoring_max_length: int | None = None
    tokens_per_batch: int | None = None
    tokens_per_row: int | None = None
    logits_chunk: int = 256
    layout: Layout = "auto"
    attention: AttentionChoice = "auto"
    refine_near_threshold: bool = True
    allow_identical_exemplars: bool = False
    check_batches: bool = True
    proxy_check: int = 256
    proxy_warn_below: float = 0.5
    scores_dir: str | None = None
    scores_from: str | None = None
    match: Match = "tokens"
    # `dataclasses.replace` calls the class with every value of the old object, as HfArgumentParser does with every
    # default. Only what `replace` hands on here tells the two apart, so that a preset is not applied a second time.
    applied_preset: InitVar[AppliedPreset | None] = None

    def __new__(cls, *args: object, **kwargs: object) -> "MIWVConfig":
        # The generated __init__ would name an unknown key but not the known ones.
        names = [f.name for f in fields(cls)]
        refuse_unknown_keys([name for name in kwargs if name != "applied_preset"], names)
        config = super().__new__(cls)
        # What is given keeps its value under a preset, also where that is the default; __init__ cannot tell the two.
        vars(config)["given"] = {*names[: len(args)], *kwargs}
        return config

    def __post_init__(self, applied_preset: AppliedPreset | None) -> None:
        for name, allowed in CHOICES.items():
            if name == "score" and not isinstance(self.score, str):
                check_own_score(self.score, allowed)
            else:
                check_choice(name, getattr(self, name), allowed)
        check_share("fraction", self.fraction, "0.05 keeps 5 % of the pool")
        check_share("rescore_budget", self.rescore_budget, "0.25 scores a quarter of the pool")
        check_rescore_steps(self.rescore_strategy, self.rescore_steps)
        check_embedder(self.embedder)
        for name in ("resample_each_epoch", "refine_near_threshold", "allow_identical_exemplars", "check_batches"):
            check_switch(name, getattr(self, name))
        check_text("scores_dir", self.scores_dir, "a folder's path")
        check_text("scores_from", self.scores_from, "a folder's path")
        check_text("group_column", self.group_column, "a column's name")
        check_text("score_column", self.score_column, "a column's name")
        self._check_guards()
        check_whole_number("logits_chunk", self.logits_chunk)
        check_whole_number("proxy_check", self.proxy_check, least=0)
        check_number("proxy_warn_below", self.proxy_warn_below, -1, 1)
        check_whole_number("exemplars_per_sample", self.exemplars_per_sample)
        for name in ("tokens_per_batch", "tokens_per_row", "scoring_max_length"):
            if getattr(self, name) is not None:
                check_whole_number(name, getattr(self, name))
        if self.sampler_seed is not None:
            check_whole_number("sampler_seed", self.sampler_seed, least=0)

        for f in fields(self):
            if f.type is float:  # round.json could not hold a number of NumPy's
                setattr(self, f.name, float(getattr(self, f.name)))
        # Last of the single values: errors above are about what was given, never about what a preset sets.
        given = vars(self).pop("given")
        self._match_score_column(replaces=applied_preset is not None, given=given)
        self._apply_preset(applied_preset, given)
        self._check_together()

    def _check_guards(self) -> None:
        check_whole_number("min_response_tokens", self.min_response_tokens, least=0)
        check_whole_number("length_bands", self.length_bands)
        self.quantile_band = check_band("quantile_band", self.quantile_band)
        self.loss_band = check_band("loss_band", self.loss_band)
        check_number("min_similarity", self.min_similarity, -1, 1)
        check_share("max_selected_similarity", self.max_selected_similarity, "a cosine; 1 leaves nothing out")
        check_number("temperature", self.temperature, 0.01)
        check_number("diversity_candidates", self.diversity_candidates, 1)
        check_number("mmr_weight", self.mmr_weight, 0, 1)

    def _match_score_column(self, replaces: bool, given: set[str]) -> None:
        """Sets `score` to "column" where a column is given and no score, as `_apply_preset` tells what is given."""
        column: ScoreName = "column"
        is_given = "score" in given and not given >= {f.name for f in fields(self)}
        if self.score_column is not None and not (replaces or is_given):
            self.score = column if describe_score(self.score) == MIWVConfig.score else self.score
        if self.score_column is None and describe_score(self.score) == column:
            raise ValueError('`score="column"` ranks by a column of the dataset: name it as `score_column`.')
        if (self.score_column is not None) != (describe_score(self.score) == column):
            raise ValueError(
                f"`score_column` is {self.score_column!r}, but `score` is {describe_score(self.score)!r}: give a "
                '`score_column` with `score="column"` or without a score, and another score without a `score_column`.'
            )

    def _apply_preset(self, applied: AppliedPreset | None, given: set[str]) -> None:
        """Sets what the preset says, unless this very preset was applied to these values before."""
        if applied is None or applied.name != self.preset:
            defaults = {f.name: _get_default(f) for f in fields(self)}
            # A call that gives every field tells nothing: HfArgumentParser does, whatever was typed. So a field at its
            # default counts as not given there.
            kept = given if not given >= defaults.keys() else set()
            values = PRESETS[self.preset]
            names = [name for name in values if name not in kept and getattr(self, name) == defaults[name]]
            for name in names:
                setattr(self, name, copy(values[name]))
            applied = AppliedPreset(self.preset, tuple(names))
        vars(self)["applied_preset"] = applied

    def _check_together(self) -> None:
        # An array would be compared element by element.
        name = describe_score(self.score)
        if self.epoch_order != "shuffled" and name in get_args(UnorderedScore):
            raise ValueError(
                f'`epoch_order={self.epoch_order!r}` needs to know how hard samples are, which `score="{self.score}"` '
                'does not tell. Use "shuffled", or another score.'
            )
        if self.loss_band != [0.0, 1.0] and not self._measures_losses():
            shown = repr(self.score) if isinstance(self.score, str) else name
            named = f"`score_column={self.score_column!r}`" if self.score_column else f"`score={shown}`"
            preset = self.preset if self.is_by_preset("loss_band") else None
            raise ValueError(explain_band_without_losses(self.loss_band, named, preset))
        if self.exemplars_per_sample > 1 and name not in get_args(ExemplarScore):
            raise ValueError(explain_more_exemplars(self.exemplars_per_sample, name))
        if self.resample_each_epoch:
            check_resampling(self.selection, self.rescore_strategy)
        if self.scores_from is not None and not self._measures_losses():
            raise ValueError(explain_source_without_losses(self.scores_from, describe_score(self.score)))
        if self.match != "tokens" and self.scores_from is None:
            raise ValueError(explain_match_without_source(self.match))
        check_attention(self.attention, self.layout)
        if self.rescore_strategy == "no" and self.rescore_budget < 1:
            raise ValueError(
                f"`rescore_budget` is {self.rescore_budget}, but nothing is scored again with "
                '`rescore_strategy="no"`. Leave it out, or set the strategy to "epoch" or "steps".'
            )

    def _measures_losses(self) -> bool:
        needs_none = not isinstance(self.score, str) or self.score in get_args(ForwardFreeScore)
        return self.extra_losses != "none" or not needs_none

    def is_by_preset(self, name: str) -> bool:
        """
        Whether the preset has set a field, and its value is still there.

        For errors: somebody who typed `preset="guarded"` has never heard of a `loss_band` of [0.0, 0.7].
        """
        applied: AppliedPreset = vars(self)["applied_preset"]
        return name in applied.fields and getattr(self, name) == PRESETS[applied.name][name]

    def without_bands(self) -> "MIWVConfig":
        """The same without the guards that depend on losses."""
        return replace(self, loss_band=[0.0, 1.0], quantile_band=[0.0, 1.0])

    @property
    def needs_embeddings(self) -> bool:
        """Whether the selection itself looks at the embeddings."""
        return self.diversity != "none" or self.max_selected_similarity < 1

    @classmethod
    def describe(cls) -> list[FieldDescription]:
        """The name and description of each field."""
        return describe_fields(cls)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MIWVConfig":
        """
        A configuration from a mapping of names to values. A preset sets only what the mapping does not name, so that
        `from_dict(config.to_dict())` is equal to `config`.

        Raises:
            TypeError: an unknown name.
        """
        names = [f.name for f in fields(cls)]
        refuse_unknown_keys(values, names)
        # A mapping of every name leaves nothing to a preset. Unlike for HfArgumentParser, it need not be guessed which
        # values were given.
        applied = AppliedPreset(values["preset"], ()) if len(values) == len(names) else None
        return cls(**values, applied_preset=applied)

    def to_dict(self) -> dict[str, object]:
        """The values as JSON can hold them; arrays are described by their shapes and a function by its name."""
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**shown, "score": describe_score(self.score), "embedder": describe_embedder(self.embedder)}


def _get_default(setting: Field[object]) -> object:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def describe_embedder(embedder: "str | np.ndarray | torch.Tensor") -> str:
    """The embedder's name, or `"array of shape (N, d)"`."""
    return embedder if isinstance(embedder, str) else f"array of shape {tuple(embedder.shape)}"
