"""Scoring again near the threshold: float32's selection from a low-precision model, and no trace of it."""

import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import DataCollatorForSeq2Seq, GPT2Config, MixtralConfig, PretrainedConfig, Trainer

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
from miwv_trainer.scoring.float32 import use_float32
from miwv_trainer.scoring.isolation import leave_no_trace
from miwv_trainer.scoring.layout import score_pool
from miwv_trainer.scoring.losses import Losses
from miwv_trainer.scoring.memory import MemoryBudget
from miwv_trainer.scoring.refine import Refined, find_nearest, refine, score_refined
from miwv_trainer.scoring.scorer import Scorer, prepare_scorer
from miwv_trainer.selection.choose import compute_overlap
from miwv_trainer.storage.store import Store
from tests.helpers.selecting import ranking_by_miwv, select_highest
from tests.helpers.tiny import instruction_rows, save_tiny, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.trainers import arguments

WORLD = World(0, 1, torch.device("cpu"))
COUNT = 70
FLIPPING_SEED = 2  # of a model whose bfloat16 selection is not float32's
CONFIG = MIWVConfig(fraction=0.1, embedder="tfidf")
IDS = torch.tensor([[5, 17, 300, 42, 9, 88], [7, 7, 250, 1, 0, 3]])

FAMILIES: dict[str, PretrainedConfig] = {
    "llama": tiny_config(),
    "llama, tied": tiny_config(tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3),
    "mixtral": MixtralConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        initializer_range=0.3,
    ),
}


def bfloat16_model(config: PretrainedConfig | None = None, seed: int = 0) -> Any:
    return tiny_model(config, seed).to(torch.bfloat16)


def with_lora(model: Any, **more: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False), **more)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def state(model: nn.Module) -> list[Any]:
    """Everything a trace could be left in."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return [
        [(name, id(t), t.data_ptr(), t.dtype, t.requires_grad, id(t.grad)) for name, t in tensors],
        [(len(m._forward_pre_hooks), len(m._forward_hooks), list(vars(m))) for m in model.modules()],
        torch.is_autocast_enabled("cpu"),
    ]


@pytest.fixture
def case() -> tuple[Pool, np.ndarray]:
    pool = pool_from_rows(tiny_dataset(COUNT), tiny_tokenizer())
    return pool, find_nearest_exemplars(embed_texts("tfidf", pool.texts), pool, 512, False)[0]


@pytest.fixture
def bf16_accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_inside_the_forward_is_that_of_the_same_weights_in_float32(family: str) -> None:
    model = bfloat16_model(FAMILIES[family])
    exact, rounded = logits(copy.deepcopy(model).float()), logits(model)
    before = state(model)
    with use_float32(model):
        inside = logits(model)
    assert inside.dtype == torch.float32 and rounded.dtype == torch.bfloat16
    torch.testing.assert_close(inside, exact, atol=1e-6, rtol=1e-6)
    assert (rounded - exact).abs().max() > 1e-3  # what the rounding had cost
    assert state(model) == before
    assert torch.equal(logits(model), rounded)


@pytest.mark.parametrize("adapter_in_float32", [True, False])
def test_lora_on_low_precision_weights(adapter_in_float32: bool) -> None:
    model = with_lora(bfloat16_model(), autocast_adapter_dtype=adapter_in_float32)
    if not adapter_in_float32:
        model.to(torch.bfloat16)
    exact, before = logits(copy.deepcopy(model).float()), state(model)
    with use_float32(model):
        torch.testing.assert_close(logits(model), exact, atol=1e-6, rtol=1e-6)
    assert state(model) == before
    assert (logits(model) - exact).abs().max() > 1e-3


@pytest.mark.parametrize("peft", [False, True])
def test_autocast_put_around_the_forward_by_accelerate_is_off_inside(bf16_accelerator: Accelerator, peft: bool) -> None:
    plain = with_lora(tiny_model()) if peft else tiny_model()
    model = bf16_accelerator.prepare(copy.deepcopy(plain))
    rounded, before = logits(model), state(model)
    with use_float32(model):
        torch.testing.assert_close(logits(model), logits(plain), atol=1e-6, rtol=1e-6)
    assert (rounded - logits(plain)).abs().max() > 1e-3
    assert state(model) == before
    assert torch.equal(logits(model), rounded)


def test_autocast_around_everything_is_off_inside_and_on_again_outside() -> None:
    model = tiny_model()
    exact = logits(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with use_float32(model):
            torch.testing.assert_close(logits(model), exact, atol=1e-6, rtol=1e-6)
        assert torch.is_autocast_enabled("cpu")
        assert (logits(model) - exact).abs().max() > 1e-3


def test_trls_fused_head_which_reads_the_heads_weight_itself() -> None:
    from trl.trainer.utils import add_fused_lm_head

    def log_probs(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=IDS, labels=IDS, fused_lm_head=True).log_probs

    model = bfloat16_model()
    exact_model = copy.deepcopy(model).float()
    add_fused_lm_head(model), add_fused_lm_head(exact_model)
    with use_float32(model):
        torch.testing.assert_close(log_probs(model), log_probs(exact_model), atol=1e-5, rtol=1e-5)
    assert (log_probs(model) - log_probs(exact_model)).abs().max() > 1e-3


def test_a_hook_that_calls_the_head_itself_finds_it_in_float32() -> None:
    model = bfloat16_model()
    exact = logits(copy.deepcopy(model).float())
    seen: list[torch.Tensor] = []

    def one_position(module: Any, args: Any) -> Any:
        seen.append(module.forward(args[0]))
        return (args[0][:, :1],)

    with use_float32(model), torch.no_grad():
        hook = model.get_output_embeddings().register_forward_pre_hook(one_position)
        assert model(input_ids=IDS).logits.shape[1] == 1
        hook.remove()
    torch.testing.assert_close(seen[0], exact, atol=1e-6, rtol=1e-6)


def test_no_trace_after_an_error_inside_a_layer() -> None:
    model = bfloat16_model()
    rounded = logits(model)

    def fail(*_: Any) -> None:
        raise KeyError("in the layer")

    before = state(model)
    with pytest.raises(KeyError, match="in the layer"), use_float32(model):
        hook = model.model.layers[1].mlp.register_forward_pre_hook(fail)
        try:
            logits(model)
        finally:
            hook.remove()
    assert state(model) == before
    assert torch.equal(logits(model), rounded)


def test_a_gradient_and_what_others_hooked_to_its_accumulation_stay() -> None:
    model = bfloat16_model().train()
    model.gradient_checkpointing_enable()
    model(input_ids=IDS, labels=IDS).loss.backward()
    weight = model.model.layers[0].mlp.up_proj.weight
    accumulator = weight.expand_as(weight).grad_fn.next_functions[0][0]
    gradient, before = weight.grad.clone(), state(model)
    counted: list[int] = []
    accumulator.register_hook(lambda *_: counted.append(1))  # as DistributedDataParallel does
    with leave_no_trace(model), use_float32(model):
        logits(model)
    assert state(model) == before and torch.equal(weight.grad, gradient)
    assert weight.expand_as(weight).grad_fn.next_functions[0][0] is accumulator
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert counted == [1]


def test_one_layer_at_a_time_is_held_in_float32() -> None:
    model = bfloat16_model()
    seen: list[list[torch.dtype]] = []
    note = lambda *_: seen.append([layer.mlp.up_proj.weight.dtype for layer in model.model.layers])  # noqa: E731
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(note)
    with use_float32(model):
        logits(model)
    low, high = torch.bfloat16, torch.float32
    assert seen == [[high, low], [low, high]]


class Sharing(nn.Module):
    """Layers that share a weight, a module, and a buffer with each other or with the outside."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        second[0].weight = first[0].weight
        second[1] = first[1]
        self.layers = nn.ModuleList([nn.ModuleList([first]), second])
        self.out = nn.Linear(4, 4)
        self.out.register_buffer("shift", torch.full((4,), 0.1))
        second[0].bias = self.out.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.out.weight.dtype)
        return self.out(self.layers[1](self.layers[0][0](x))) + self.out.shift


def test_what_layers_share_is_float32_in_all_of_them() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Sharing().to(torch.bfloat16), torch.randn(2, 4)
    before = state(model)
    with torch.no_grad():
        exact = copy.deepcopy(model).float()(x)
        with use_float32(model):
            torch.testing.assert_close(model(x), exact, atol=1e-7, rtol=1e-7)
    assert state(model) == before


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
            prepare_scorer(model, pool, CONFIG, WORLD), Exemplars(exemplars, similarities), store, TrainingPoint()
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
