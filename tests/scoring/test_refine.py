"""Scoring again near the threshold: float32's selection from a low-precision model, and no trace of it."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import DataCollatorForSeq2Seq, Trainer

from miwv_trainer import MIWVConfig, attach, tokenize
from miwv_trainer.cli.main import main
from miwv_trainer.data.build import pool_from_rows
from miwv_trainer.data.pool import Pool
from miwv_trainer.distributed.world import World
from miwv_trainer.embeddings.embedders import embed_texts
from miwv_trainer.embeddings.nearest import find_nearest_exemplars
from miwv_trainer.report.tables import format_rounds
from miwv_trainer.rounds.identity import Exemplars, TrainingPoint
from miwv_trainer.rounds.messages import describe_round
from miwv_trainer.rounds.round import run_round
from miwv_trainer.scoring import refine as precision
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import score_pool
from miwv_trainer.scoring.losses import Losses
from miwv_trainer.scoring.memory import MemoryBudget
from miwv_trainer.scoring.refine import Refined, find_nearest, refine, score_refined
from miwv_trainer.scoring.scorer import Scorer, prepare_scorer
from miwv_trainer.selection.choose import compute_overlap
from miwv_trainer.storage.store import Store
from tests.helpers.low_precision import bfloat16_model, state
from tests.helpers.selecting import ranking_by_miwv, select_highest
from tests.helpers.tiny import instruction_rows, save_tiny, tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.trainers import arguments

WORLD = World(0, 1, torch.device("cpu"))
COUNT = 70
FLIPPING_SEED = 2  # of a model whose bfloat16 selection is not float32's
CONFIG = MIWVConfig(fraction=0.1, embedder="tfidf")


@pytest.fixture
def case() -> tuple[Pool, np.ndarray]:
    pool = pool_from_rows(tiny_dataset(COUNT), tiny_tokenizer())
    return pool, find_nearest_exemplars(embed_texts("tfidf", pool.texts), pool, 512, False)[0]


@pytest.mark.parametrize(
    "number, width, expected",
    [
        (2, 0.5, [3, 0, 5]),  # the second highest is 2.0, of sample 3; 0 and 5 are 0.5 away
        (2, 0.4, [3]),
        (2, 0.0, [3]),
        (1, 0.6, [0, 3]),
        (3, 100.0, [5, 3, 0, 2, 4]),  # 0 and 2 are both 1.0 away from sample 5's 1.5: the lower index first
        (5, 100.0, []),  # all that have a score are selected
        (6, 100.0, []),
    ],
)
def test_near_threshold_by_hand(number: int, width: float, expected: list[int]) -> None:
    miwv = np.array([2.5, np.nan, 0.5, 2.0, -1.0, 1.5], dtype=np.float32)
    _, distances = ranking_by_miwv(number)(Losses(np.zeros(6, dtype=np.float32), miwv, 0))
    assert find_nearest(distances, width).tolist() == expected


def scored(model: Any, case: tuple[Pool, np.ndarray], config: MIWVConfig = CONFIG) -> Losses:
    with leave_no_trace(model):
        return score_pool(prepare_scorer(model, case[0], config, WORLD), case[1], "tree")


def test_the_selection_is_float32s_where_bfloat16_alone_flips_it(case: tuple[Pool, np.ndarray]) -> None:
    model = bfloat16_model(seed=FLIPPING_SEED)
    exact = scored(copy.deepcopy(model).float(), case)
    reference = select_highest(exact.miwv, COUNT // 10)
    off = score_with(model, case, refine_near_threshold=False)
    assert compute_overlap(reference, select_highest(off.losses.miwv, COUNT // 10)) < 0.95
    assert (off.samples, off.tokens, off.seconds) == (0, 0, 0.0)
    on = score_with(model, case)
    assert select_highest(on.losses.miwv, COUNT // 10).tolist() == reference.tolist()
    # As many as were scored again have float32's losses, and the others the model's own.
    again = np.abs(on.losses.miwv - exact.miwv) < 1e-5
    assert 0 < on.samples < COUNT and on.samples <= again.sum() < on.samples + 5
    np.testing.assert_allclose(on.losses.zero_shot[again], exact.zero_shot[again], atol=1e-3)
    assert np.array_equal(on.losses.miwv[~again], off.losses.miwv[~again])
    assert on.seconds > 0 and on.losses.tokens_forwarded == off.losses.tokens_forwarded + on.tokens


def score_with(model: Any, case: tuple[Pool, np.ndarray], world: World = WORLD, **settings: Any) -> Refined:
    config = MIWVConfig(fraction=0.1, embedder="tfidf", **settings)
    with leave_no_trace(model):
        return score_refined(
            prepare_scorer(model, case[0], config, world), case[1], "tree", ranking_by_miwv(COUNT // 10)
        )


def test_a_float32_model_is_scored_once(case: tuple[Pool, np.ndarray]) -> None:
    assert score_with(tiny_model(), case).samples == 0


def test_autocast_is_noticed_by_what_the_modules_run_under(
    case: tuple[Pool, np.ndarray], bf16_accelerator: Accelerator
) -> None:
    model = bf16_accelerator.prepare(tiny_model(seed=FLIPPING_SEED))
    before = state(model)
    on = score_with(model, case)
    assert on.samples > 0 and state(model) == before
    exact = scored(tiny_model(seed=FLIPPING_SEED), case)
    assert (np.abs(on.losses.miwv - exact.miwv) < 1e-5).sum() >= on.samples
    assert select_highest(on.losses.miwv, 7).tolist() == select_highest(exact.miwv, 7).tolist()


def offload(model: Any) -> None:
    model.lm_head.register_parameter("away", nn.Parameter(torch.empty(1, device="meta")))


def pack(model: Any) -> None:
    model.register_parameter("packed", nn.Parameter(torch.zeros(1, dtype=torch.uint8), requires_grad=False))


def name_quantisation(model: Any) -> None:
    model.config.quantization_config = {"quant_method": "gptq"}


@pytest.mark.parametrize(
    "change, sharded, reason",
    [
        (lambda model: None, True, "the model's parameters are split over the ranks"),
        (offload, False, "some of the model's weights are offloaded"),
        (pack, False, "the model is quantised"),
        (name_quantisation, False, "the model is quantised"),
    ],
)
def test_a_model_that_cannot_be_copied_is_left_as_it_is_with_a_log_line(
    case: tuple[Pool, np.ndarray], caplog: pytest.LogCaptureFixture, change: Any, sharded: bool, reason: str
) -> None:
    model = bfloat16_model()
    change(model)
    with caplog.at_level(logging.INFO):
        refined = score_with(model, case, World(0, 1, torch.device("cpu"), sharded))
    assert refined.samples == 0
    assert caplog.messages == [f"Samples near the threshold are not scored again in float32: {reason}."]


def test_a_forward_that_refuses_float32_keeps_the_losses_there_are(
    case: tuple[Pool, np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    model = bfloat16_model()
    plain = score_with(model, case, refine_near_threshold=False)

    def refuse(module: Any, args: Any) -> None:
        if module.mlp.up_proj.weight.dtype == torch.float32:
            raise RuntimeError("no kernel for float32\nat line 7")

    model.model.layers[0].register_forward_pre_hook(refuse)
    before = state(model)
    refined = score_with(model, case)
    assert state(model) == before
    assert refined.samples == 0 and np.array_equal(refined.losses.miwv, plain.losses.miwv)
    assert "Only 0 samples near the threshold could be scored again in float32: no kernel for float32." in caplog.text


class Measured:
    """Stands for a model: float32's MIWV for the samples asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, noise: float, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.exact = generator.normal(0, 0.5, count).astype(np.float32)
        self.rounded = (self.exact + noise * generator.standard_t(5, count)).astype(np.float32)
        self.asked: list[int] = []
        self.count = count
        monkeypatch.setattr(precision, "score_pool", self.score)

    def score(self, scorer: Any, exemplars: np.ndarray, *_: Any) -> Losses:
        samples = np.flatnonzero(exemplars >= 0)
        self.asked += samples.tolist()
        miwv = np.full(self.count, np.nan, dtype=np.float32)
        miwv[samples] = self.exact[samples]
        return Losses(np.zeros(self.count, dtype=np.float32), miwv, 10 * len(samples))

    def refined(self, fraction: float) -> Refined:
        low = Losses(np.zeros(self.count, dtype=np.float32), self.rounded, 10 * self.count)
        pool: Any = range(self.count)
        exemplars = np.zeros(self.count, dtype=np.int64)
        model: Any = nn.Linear(1, 1)
        scorer = Scorer(model, pool, MIWVConfig(), WORLD, 512, MemoryBudget(2**40, 4096, 4096))
        ranking = ranking_by_miwv(round(fraction * self.count))
        return refine(scorer, exemplars, low, "tree", ranking)


@pytest.mark.parametrize("seed", range(8))
def test_the_band_is_widened_to_what_rounding_moves_and_each_sample_scored_once(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    pool = Measured(monkeypatch, count=2000, noise=0.03, seed=seed)
    refined = pool.refined(fraction=0.05)
    reference = select_highest(pool.exact, 100)
    assert compute_overlap(reference, select_highest(pool.rounded, 100)) < 0.97
    assert compute_overlap(reference, select_highest(refined.losses.miwv, 100)) >= 0.98
    assert len(pool.asked) == len(set(pool.asked)) == refined.samples < 500
    assert refined.tokens == 10 * refined.samples
    # Independently: whoever is within three root mean squares of float32's threshold has been asked for.
    miwv, done = refined.losses.miwv, np.isin(np.arange(2000), pool.asked)
    threshold = np.sort(miwv)[-100]
    width = 3 * np.sqrt(np.mean((pool.exact - pool.rounded)[done] ** 2))
    assert done[np.abs(miwv - threshold) <= width * 0.999].all()
    assert np.array_equal(miwv[done], pool.exact[done]) and np.array_equal(miwv[~done], pool.rounded[~done])


def test_a_band_that_would_be_wider_than_a_quarter_of_the_pool_is_cut_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Measured(monkeypatch, count=400, noise=0.5, seed=0)
    assert pool.refined(fraction=0.3).samples == len(set(pool.asked)) == 100
    assert "100 samples near the threshold were scored again in float32, the most that are, and" in caplog.text
    threshold = np.sort(pool.rounded)[-120]
    assert np.argmin(np.abs(pool.rounded - threshold)) in pool.asked


def test_where_everything_is_selected_nothing_is_scored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Measured(monkeypatch, count=100, noise=0.1, seed=0)
    assert (pool.refined(fraction=1.0).samples, pool.asked) == (0, [])


def test_a_round_writes_and_logs_what_it_cost(case: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    pool, exemplars = case
    similarities = np.zeros(COUNT, dtype=np.float32)

    def finished(folder: str, model: Any) -> Any:
        store = Store(tmp_path / folder)
        return run_round(
            prepare_scorer(model, pool, CONFIG, WORLD),
            Exemplars(exemplars[:, None], similarities[:, None]),
            store,
            TrainingPoint(),
        )

    model = bfloat16_model(seed=FLIPPING_SEED)
    current, exact = finished("low", model), finished("float32", copy.deepcopy(model).float())
    assert current.selection.tolist() == exact.selection.tolist()
    summary = json.loads((current.folder / "round.json").read_text(encoding="utf-8"))
    samples, tokens, seconds = (summary[f"refined_{what}"] for what in ("samples", "tokens", "seconds"))
    assert samples > 0 and 0 < tokens < summary["tokens_forwarded"] and 0 < seconds < summary["seconds"]
    assert f", {samples} near the threshold scored again in float32 in " in describe_round(current)
    assert f" ({samples} near the threshold again in float32: " in format_rounds([current])
    nothing = [exact.summary[f"refined_{what}"] for what in ("samples", "tokens", "seconds")]
    assert nothing == [0, 0, 0] and "float32" not in describe_round(exact) + format_rounds([exact])


def test_a_trainer_with_bf16_selects_as_in_float32(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    selections = {}
    for bf16 in (False, True):
        trainer = Trainer(
            model=tiny_model(seed=FLIPPING_SEED),
            args=arguments(tmp_path / str(bf16), max_steps=1, bf16=bf16),
            train_dataset=tokenize(tiny_dataset(COUNT), tokenizer),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            processing_class=tokenizer,
        )
        callback = attach(trainer, CONFIG)
        trainer.train()
        selections[bf16] = callback.rounds[0].selection.tolist()
        assert (callback.rounds[0].summary["refined_samples"] > 0) == bf16
    assert selections[True] == selections[False]


@pytest.mark.parametrize("flag, some", [("", True), ("--no-refine", False)])
def test_the_command_line_can_leave_it_out(tmp_path: Path, flag: str, some: bool) -> None:
    save_tiny(tmp_path / "model")
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in instruction_rows(12)))
    command = f"score --model {tmp_path}/model --dataset {tmp_path}/pool.jsonl --output {tmp_path} --embedder tfidf"
    assert main(f"{command} --dtype bfloat16 --fraction 0.2 {flag}".split()) == 0
    summary = json.loads((tmp_path / "miwv" / "round-000" / "round.json").read_text())
    assert (summary["refined_samples"] > 0) == some
