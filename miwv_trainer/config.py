"""Every knob of the library, checked when it is constructed.

Defaults are the paper's (Jiang et al., AAAI 2026, arXiv 2511.07074) where it names one: the embedder is
BGE-large-en, the score is taken once. The default fraction is the 5 % at which the paper's selection was strongest
on Alpaca.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from miwv_trainer.checks import (
    check_band,
    check_choice,
    check_embedder,
    check_number,
    check_rescore_steps,
    check_share,
    check_switch,
    check_text,
    check_whole_number,
    refuse_unknown_keys,
)

DEFAULT_EMBEDDER = "BAAI/bge-large-en-v1.5"
RescoreStrategy = Literal["no", "epoch", "steps"]
Layout = Literal["auto", "tree", "padded"]
# The records of the scores are in selection/scores.py, which imports this file. So that the checks below need not name
# a score, the two properties they depend on are types here; a test holds the records to them.
UnorderedScore = Literal["random"]  # says nothing about how hard a sample is
ForwardFreeScore = Literal[UnorderedScore, "longest"]  # needs no loss
ScoreName = Literal["miwv", "low_miwv", "residual_miwv", "zero_shot_loss", "one_shot_loss", ForwardFreeScore]
SelectionBudget = Literal["samples", "tokens"]
Diversity = Literal["none", "facility_location", "mmr"]
EpochOrder = Literal["shuffled", "easy_to_hard", "hard_to_easy"]
Preset = Literal["none", "paper", "guarded"]
# What a preset sets where the user has left the default.
PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "paper": {"allow_identical_exemplars": True},
    "guarded": {"selection_budget": "tokens", "loss_band": [0.0, 0.7], "max_selected_similarity": 0.95},
}
# What decides, together with the scores, which samples a round selects.
SELECTION_FIELDS = (
    "score",
    "min_response_tokens",
    "quantile_band",
    "loss_band",
    "min_similarity",
    "max_selected_similarity",
    "length_bands",
    "selection_budget",
    "group_column",
    "diversity",
    "diversity_candidates",
    "mmr_weight",
)


@dataclass
class MIWVConfig:
    """
    What to select and how to score.

    Usable with [`~transformers.HfArgumentParser`]: no name is one of `TrainingArguments` or of TRL's `SFTConfig`.

    Args:
        fraction (`float`, defaults to `0.05`):
            Share of the pool that is selected, in (0, 1]. `floor(fraction * N)` samples, at least one.
        rescore_strategy (`str`, defaults to `"no"`):
            `"no"` scores once, before the first step. `"epoch"` scores again before every later epoch, with the model
            as it then is; `"steps"` after every `rescore_steps` optimizer steps. A full rescore forwards the whole
            pool's tokens about twice in trees, three times in padded rows.
        rescore_steps (`int`, *optional*):
            Optimizer steps from one round to the next, with `rescore_strategy="steps"`. The new selection takes effect
            a few steps later, where no dataloader can have drawn samples yet; round.json says where.
        rescore_budget (`float`, defaults to `1.0`):
            Share of the pool that is scored in a later round, in (0, 1]: three fifths of it are the samples of highest
            last score, a fifth those unscored for longest, a fifth drawn at random. The others keep their scores, with
            their `age` in scores.parquet.
        score (`str`, defaults to `"miwv"`):
            What samples are ranked by, highest first: `"miwv"`, `"low_miwv"` (lowest first), `"residual_miwv"` (what
            response length and exemplar similarity leave unexplained of it), `"zero_shot_loss"`, `"one_shot_loss"`,
            `"random"`, or `"longest"` (most response tokens). The last two make no forward.
        selection_budget (`str`, defaults to `"samples"`):
            What `fraction` is a share of: the pool's `"samples"`, or its response `"tokens"`. The length of an epoch is
            `floor(fraction * N)` samples either way; a selection of more is walked through over several epochs.
        preset (`str`, defaults to `"none"`):
            `"paper"` or `"guarded"`: values for the fields that were left at their defaults.
        min_response_tokens (`int`, defaults to `0`):
            Samples with fewer response tokens are not selected: their mean losses are noisy and crowd both ends.
        quantile_band (`list[float]`, defaults to `[0.0, 1.0]`):
            Lowest and highest quantile of the scores, of those that the other guards leave, that are selected from.
            Mislabelled samples gather at the very top.
        loss_band (`list[float]`, defaults to `[0.0, 1.0]`):
            The same of the zero-shot losses. Responses that have nothing to do with their prompts have high ones.
        min_similarity (`float`, defaults to `-1.0`):
            Samples whose exemplar is less similar (cosine) are not selected: an unrelated example raises MIWV.
        max_selected_similarity (`float`, defaults to `1.0`):
            Of two samples whose prompts are more similar (cosine) than this, only the one of higher score is selected.
        length_bands (`int`, defaults to `1`):
            Number of bands of response length, of equal size, within which samples are ranked.
        group_column (`str`, *optional*):
            Column of the dataset that names a sample's group. Each group keeps its share of the pool in the selection.
        diversity (`str`, defaults to `"none"`):
            `"facility_location"` or `"mmr"` (maximal marginal relevance): which of the candidates of highest score are
            selected, by their embeddings.
        diversity_candidates (`float`, defaults to `4.0`):
            How many times the selection's size these candidates are.
        mmr_weight (`float`, defaults to `0.5`):
            Weight of the score against similarity to what is selected already, in [0, 1].
        epoch_order (`str`, defaults to `"shuffled"`):
            Order within an epoch: `"shuffled"`, `"easy_to_hard"` or `"hard_to_easy"`, by MIWV (or the loss or length
            that `score` names).
        embedder (`str`, or array of shape `(N, d)`, defaults to `"BAAI/bge-large-en-v1.5"`):
            What decides which samples are similar. Any sentence-transformers name or folder; `"tfidf"` (needs no
            download); `"model"` (the mean of the prompt's last hidden states in the model being trained); or an array
            with one line per sample, in pool order.
        sampler_seed (`int`, *optional*):
            Seed of the order within an epoch. By default the Trainer's `data_seed`, else its `seed`.
        scoring_max_length (`int`, *optional*):
            Longest sequence, in tokens, that is forwarded. By default the model's `max_position_embeddings`.
        tokens_per_batch (`int`, *optional*):
            Upper bound on the tokens of one scoring forward, padding included. One longer row goes alone. By default
            4,096 on a CPU and 32,768 elsewhere, or as much as half of the free memory holds; less for a small pool, so
            that several ranks carry equal work.
        tokens_per_row (`int`, *optional*):
            Upper bound on the tokens of one row of trees. One longer sample behind its exemplar goes alone. Longer rows
            repeat fewer trunks; where rows have masks, they waste more attention on pairs that are masked. By default
            4,096, with masks 1,024 on a CPU and 2,048 elsewhere.
        logits_chunk (`int`, defaults to `256`):
            Number of positions whose logits exist at once.
        layout (`str`, defaults to `"auto"`):
            How samples share a forward: `"padded"` (one sequence a row, sorted by length), or `"tree"` (samples with
            the same exemplar behind one copy of it; two thirds of the tokens, for models with full attention).
            `"auto"` takes trees where the model can, after scoring a few samples both ways.
        refine_near_threshold (`bool`, defaults to `True`):
            Whether the samples near the selection's threshold are scored again in float32 arithmetic, where the model
            computes in lower precision. round.json says how many they were and what they cost.
        allow_identical_exemplars (`bool`, defaults to `False`):
            Whether a copy of a sample may be its exemplar, as in the letter of the paper. Off, because the copy's
            one-shot loss collapses and neither of the two is ever selected.
        scores_dir (`str`, *optional*):
            Folder that receives `miwv/`. By default the Trainer's `output_dir`.

    Raises:
        TypeError: an unknown key.
        ValueError:
            a value out of range, or two that exclude each other; the message says what was given and what is allowed.
    """

    fraction: float = field(
        default=0.05, metadata={"help": "Share of the pool that is selected, above 0 and at most 1."}
    )
    rescore_strategy: RescoreStrategy = field(
        default="no",
        metadata={
            "help": "'no' scores once, 'epoch' again before every later epoch, 'steps' after every rescore_steps steps."
        },
    )
    rescore_steps: int | None = field(
        default=None, metadata={"help": "Optimizer steps between rounds, with rescore_strategy 'steps'."}
    )
    rescore_budget: float = field(default=1.0, metadata={"help": "Share of the pool that is scored in a later round."})
    score: ScoreName = field(default="miwv", metadata={"help": "What samples are ranked by, highest first."})
    selection_budget: SelectionBudget = field(
        default="samples", metadata={"help": "What fraction is a share of: the pool's samples or its response tokens."}
    )
    preset: Preset = field(
        default="none", metadata={"help": "'paper' or 'guarded': values for what is left at its default."}
    )
    min_response_tokens: int = field(
        default=0, metadata={"help": "Samples with fewer response tokens are not selected."}
    )
    quantile_band: list[float] = field(
        default_factory=lambda: [0.0, 1.0],
        metadata={"help": "Lowest and highest quantile of the scores that are selected from.", "nargs": 2},
    )
    loss_band: list[float] = field(
        default_factory=lambda: [0.0, 1.0],
        metadata={"help": "Lowest and highest quantile of the zero-shot losses that are selected from.", "nargs": 2},
    )
    min_similarity: float = field(
        default=-1.0, metadata={"help": "Samples whose exemplar is less similar (cosine) are not selected."}
    )
    max_selected_similarity: float = field(
        default=1.0,
        metadata={
            "help": "Of samples whose prompts are more similar (cosine), only that of highest score is selected."
        },
    )
    length_bands: int = field(
        default=1, metadata={"help": "Number of bands of response length within which samples are ranked."}
    )
    group_column: str | None = field(
        default=None, metadata={"help": "Column that names a sample's group; groups keep their shares of the pool."}
    )
    diversity: Diversity = field(
        default="none", metadata={"help": "How candidates of highest score are chosen from, by their embeddings."}
    )
    diversity_candidates: float = field(
        default=4.0, metadata={"help": "How many times the selection's size the candidates of diversity are."}
    )
    mmr_weight: float = field(
        default=0.5, metadata={"help": "Weight of the score, against similarity, with diversity 'mmr'."}
    )
    epoch_order: EpochOrder = field(
        default="shuffled", metadata={"help": "Order within an epoch, by how hard samples are."}
    )
    # An array is welcome too, but HfArgumentParser wants one plain type.
    embedder: str = field(
        default=DEFAULT_EMBEDDER,
        metadata={"help": "A sentence-transformers name or folder, 'tfidf', or 'model'."},
    )
    sampler_seed: int | None = field(
        default=None, metadata={"help": "Seed of the order within an epoch; by default the Trainer's."}
    )
    scoring_max_length: int | None = field(
        default=None, metadata={"help": "Longest sequence in tokens; by default the model's context."}
    )
    tokens_per_batch: int | None = field(
        default=None, metadata={"help": "Tokens of one scoring forward; by default what the free memory holds."}
    )
    tokens_per_row: int | None = field(
        default=None, metadata={"help": "Tokens of one row of trees; by default what pays on the device."}
    )
    logits_chunk: int = field(default=256, metadata={"help": "Positions whose logits exist at once."})
    layout: Layout = field(default="auto", metadata={"help": "How samples share a forward."})
    refine_near_threshold: bool = field(
        default=True,
        metadata={"help": "Whether samples near the threshold are scored again in float32, under lower precision."},
    )
    allow_identical_exemplars: bool = field(
        default=False, metadata={"help": "Whether a copy of a sample may be its exemplar."}
    )
    scores_dir: str | None = field(
        default=None, metadata={"help": "Folder that receives miwv/; by default the Trainer's output_dir."}
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> "MIWVConfig":
        # The generated __init__ would name an unknown key but not the known ones.
        refuse_unknown_keys(cls, kwargs)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        check_share("fraction", self.fraction, "0.05 keeps 5 % of the pool")
        check_share("rescore_budget", self.rescore_budget, "0.25 scores a quarter of the pool")
        check_rescore_steps(self.rescore_strategy, self.rescore_steps)
        check_embedder(self.embedder)
        for name in ("refine_near_threshold", "allow_identical_exemplars"):
            check_switch(name, getattr(self, name))
        check_text("scores_dir", self.scores_dir, "a folder's path")
        check_text("group_column", self.group_column, "a column's name")
        self._check_guards()
        check_whole_number("logits_chunk", self.logits_chunk)
        for name in ("tokens_per_batch", "tokens_per_row", "scoring_max_length"):
            if getattr(self, name) is not None:
                check_whole_number(name, getattr(self, name))
        if self.sampler_seed is not None:
            check_whole_number("sampler_seed", self.sampler_seed, least=0)

        for f in fields(self):
            if f.type is float:  # NumPy's numbers are no JSON
                setattr(self, f.name, float(getattr(self, f.name)))
        self._apply_preset()
        self._check_together()

    def _check_guards(self) -> None:
        check_whole_number("min_response_tokens", self.min_response_tokens, least=0)
        check_whole_number("length_bands", self.length_bands)
        self.quantile_band = check_band("quantile_band", self.quantile_band)
        self.loss_band = check_band("loss_band", self.loss_band)
        check_number("min_similarity", self.min_similarity, -1, 1)
        check_share("max_selected_similarity", self.max_selected_similarity, "a cosine; 1 leaves nothing out")
        check_number("diversity_candidates", self.diversity_candidates, 1)
        check_number("mmr_weight", self.mmr_weight, 0, 1)

    def _apply_preset(self) -> None:
        for f in fields(self):
            if f.name in PRESETS[self.preset] and getattr(self, f.name) == _default(f):
                setattr(self, f.name, copy(PRESETS[self.preset][f.name]))

    def _check_together(self) -> None:
        if self.epoch_order != "shuffled" and self.score in get_args(UnorderedScore):
            raise ValueError(
                f'`epoch_order={self.epoch_order!r}` needs to know how hard samples are, which `score="{self.score}"` '
                'does not tell. Use "shuffled", or another score.'
            )
        if self.loss_band != [0.0, 1.0] and self.score in get_args(ForwardFreeScore):
            raise ValueError(
                f"`loss_band` is {self.loss_band}, but `score={self.score!r}` makes no forward, so that there are no "
                "losses. Leave it out, or use another score."
            )
        if self.rescore_strategy == "no" and self.rescore_budget < 1:
            raise ValueError(
                f"`rescore_budget` is {self.rescore_budget}, but nothing is scored again with "
                '`rescore_strategy="no"`. Leave it out, or set the strategy to "epoch" or "steps".'
            )

    def without_bands(self) -> "MIWVConfig":
        """Without the guards that depend on losses."""
        return replace(self, preset="none", loss_band=[0.0, 1.0], quantile_band=[0.0, 1.0])

    @property
    def needs_embeddings(self) -> bool:
        """Whether the selection itself looks at the embeddings."""
        return self.diversity != "none" or self.max_selected_similarity < 1

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MIWVConfig":
        """A configuration from a mapping of names to values. Raises `TypeError` on an unknown name."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON can hold them; an embedding array is described by its shape."""
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "embedder"}
        return {**shown, "embedder": describe_embedder(self.embedder)}


CHOICES: dict[str, tuple[str, ...]] = {
    "rescore_strategy": get_args(RescoreStrategy),
    "score": get_args(ScoreName),
    "selection_budget": get_args(SelectionBudget),
    "preset": get_args(Preset),
    "diversity": get_args(Diversity),
    "epoch_order": get_args(EpochOrder),
    "layout": get_args(Layout),
}


def _default(of: Field[Any]) -> Any:
    return of.default if of.default_factory is MISSING else of.default_factory()


def describe_embedder(embedder: Any) -> str:
    """The embedder's name, or `"array of shape (N, d)"`."""
    return embedder if isinstance(embedder, str) else f"array of shape {tuple(embedder.shape)}"
