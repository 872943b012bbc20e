"""The files in ds_configs/, as accelerate and transformers read them."""

import json
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from tests.helpers.launch import CONFIGS, ROOT

YAMLS = {
    "ddp": DistributedType.MULTI_GPU,
    "multi_node": DistributedType.MULTI_GPU,
    "deepspeed": DistributedType.DEEPSPEED,
    "fsdp2": DistributedType.FSDP,
}
STAGES = {"zero1": 1, "zero2": 2, "zero3": 3, "zero3_offload": 3}


def test_these_are_all_files() -> None:
    assert {path.name for path in CONFIGS.iterdir()} == {*(f"{n}.yaml" for n in YAMLS), *(f"{n}.json" for n in STAGES)}


@pytest.mark.parametrize("name", YAMLS)
def test_accelerate_knows_every_key(name: str) -> None:
    path = str(CONFIGS / f"{name}.yaml")
    config = load_config_from_file(path)  # refuses unknown keys at the top
    assert config.distributed_type == YAMLS[name]
    assert config.num_processes % config.num_machines == 0
    known = vars(launch_command_parser().parse_args(["--config_file", path, "examples/train.py"]))
    nested = {**config.deepspeed_config, **config.fsdp_config}
    assert set(nested) <= set(known)
    assert (ROOT / nested.get("deepspeed_config_file", path)).is_file()


def test_the_fsdp_file_asks_for_fsdp_2_and_a_whole_saved_model(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config_from_file(str(CONFIGS / "fsdp2.yaml"))
    parser = launch_command_parser()
    options = ["--use_fsdp", "--num_processes", "8", "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
    for key, value in config.fsdp_config.items():
        options += [f"--{key}", str(value).lower() if isinstance(value, bool) else str(value)]
    environment = prepare_multi_gpu_env(parser.parse_args([*options, "examples/train.py"]))
    for key, value in environment.items():
        if key.startswith(("FSDP_", "ACCELERATE_USE_FSDP")):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert plugin.cpu_ram_efficient_loading


@pytest.mark.parametrize("name", STAGES)
def test_a_deepspeed_file_leaves_the_trainers_arguments_to_the_trainer(name: str) -> None:
    settings = json.loads(Path(CONFIGS / f"{name}.json").read_text())
    config = HfDeepSpeedConfig(settings)
    zero = settings["zero_optimization"]
    assert zero["stage"] == STAGES[name]
    assert config.is_zero3() == (STAGES[name] == 3)
    assert config.is_offload() == (name == "zero3_offload")
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert settings[key] == "auto"
    assert settings["bf16"]["enabled"] == settings["fp16"]["enabled"] == "auto"
    assert zero.get("stage3_gather_16bit_weights_on_model_save", False) == (STAGES[name] == 3)
