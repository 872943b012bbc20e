"""
Private names of other libraries: each is used in one function of one file, and is still there in what is installed.

A name that begins with an underscore may go with any release. These tests say which release took it.
"""

import ast
import importlib.metadata
import inspect
import os
import re
from collections import defaultdict, namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.attention.flex_attention import create_block_mask
from transformers import Trainer
from transformers.integrations import deepspeed

from miwv_trainer.scoring.tree_masks import BLOCK_SIZE
from tests.helpers.launch import ROOT, free_port
from tests.helpers.tiny import tiny_model

PACKAGE = ROOT / "miwv_trainer"
USES = {
    "_attn_implementation": {"distributed/wrappers.py: get_attention_implementation"},
    "_get_train_sampler": {"training/attach.py: _give_sampler"},
    "_handle": {"distributed/sharding.py: _reshard_fsdp1"},
    "_hf_deepspeed_config_weak_ref": {"distributed/sharding.py: _find_running_config"},
    "_is_root": {"distributed/sharding.py: _reshard_fsdp1"},
}
# Documented, although they begin with an underscore.
OF_PYTHON = {*os.__all__, *dir(namedtuple("Any", ""))}


def is_private(name: str) -> bool:
    return re.match(r"_(?!_)", name) is not None


def names_used(node: ast.AST) -> list[str]:
    """Names that one node of a syntax tree takes from an object or a module."""
    match node:
        case ast.Attribute():
            return [node.attr]
        case ast.ImportFrom() if node.module is not None and not node.module.startswith("miwv_trainer"):
            return [*node.module.split("."), *(alias.name for alias in node.names)]
        case ast.Import():
            return [part for alias in node.names for part in alias.name.split(".")]
        case ast.Call(func=ast.Name(id="getattr" | "setattr" | "hasattr" | "delattr"), args=[_, ast.Constant(), *_]):
            return [str(node.args[1].value)]  # type: ignore[attr-defined]
    return []


def own_names(tree: ast.AST) -> Iterator[str]:
    """Private names that a file gives to its own functions, classes, attributes and variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def foreign_names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Each private name of another library with the outermost function that uses it."""
    own = {*own_names(tree), *OF_PYTHON}
    for outer in ast.iter_child_nodes(tree):
        for node in ast.walk(outer):
            for name in names_used(node):
                if is_private(name) and name not in own:
                    yield name, getattr(outer, "name", "the module")


def test_each_private_name_of_another_library_is_used_in_one_function() -> None:
    found = defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, function in foreign_names(ast.parse(path.read_text(encoding="utf-8"))):
            found[name].add(f"{path.relative_to(PACKAGE)}: {function}")
    assert dict(found) == USES


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("def read(model): return model.config._attn_implementation", "_attn_implementation"),
        ("def read(model): return getattr(model, '_handle', None)", "_handle"),
        ("def read():\n    from torch._dynamo import reset", "_dynamo"),
        ("import torch._dynamo", "_dynamo"),
        ("from torch.nn import _reduction", "_reduction"),
        ("def keep(trainer): trainer._get_train_sampler = None", "_get_train_sampler"),
    ],
)
def test_a_private_name_is_found_wherever_it_is_used(code: str, name: str) -> None:
    assert [found for found, _ in foreign_names(ast.parse(code))] == [name]


@pytest.mark.parametrize("uses", list(USES.values()), ids=list(USES))
def test_the_version_in_which_a_name_was_seen_stands_beside_it(uses: set[str]) -> None:
    (use,) = uses
    path, function = use.split(": ")
    text = (PACKAGE / path).read_text(encoding="utf-8")
    (body,) = [
        ast.get_source_segment(text, node)
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == function
    ]
    assert body is not None and re.search(r"# Private, seen in (transformers|torch) \d+\.\d+\.\d+", body)


def gone(library: str, name: str, instead: str) -> str:
    version = importlib.metadata.version(library)
    where = " and ".join(sorted(USES[name]))
    return f"{library} {version} has no `{name}` any more. miwv_trainer/{where} uses it: {instead}"


def test_transformers_says_which_attention_a_model_runs() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    found = getattr(model.config, "_attn_implementation", None)
    assert found == "eager", gone(
        "transformers", "_attn_implementation", "read there what `set_attn_implementation` sets now."
    )


def test_the_trainer_asks_itself_for_its_sampler() -> None:
    instead = "find what `Trainer.get_train_dataloader` takes its sampler from, and replace that on the instance."
    assert callable(getattr(Trainer, "_get_train_sampler", None)), gone("transformers", "_get_train_sampler", instead)
    assert "_get_train_sampler" in inspect.getsource(Trainer.get_train_dataloader), gone(
        "transformers", "_get_train_sampler", instead
    )


def test_transformers_keeps_deepspeeds_configuration() -> None:
    assert hasattr(deepspeed, "_hf_deepspeed_config_weak_ref"), gone(
        "transformers",
        "_hf_deepspeed_config_weak_ref",
        "find where `set_hf_deepspeed_config` keeps the object now, so that it can be put back.",
    )


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["_handle", "_is_root"])
def test_fsdp1_knows_whether_it_holds_gathered_parameters(name: str, process_group: None) -> None:
    wrapped = FullyShardedDataParallel(nn.Linear(2, 2), device_id=torch.device("cpu"))
    instead = "find how FSDP1 frees gathered parameters after a forward now, or give up FSDP1."
    assert getattr(wrapped, "_is_root", "gone") is None, gone("torch", name, instead)
    wrapped(torch.ones(1, 2))
    assert getattr(wrapped, "_is_root", None) is True, gone("torch", name, instead)
    for member in ("uses_sharded_strategy", "reshard"):
        assert hasattr(getattr(wrapped, "_handle", None), member), gone("torch", name, f"`{member}` is gone; {instead}")


def test_blocks_of_flex_attention_are_as_large_as_by_default() -> None:
    default = inspect.signature(create_block_mask).parameters["BLOCK_SIZE"].default
    assert default == BLOCK_SIZE, (
        f"torch {torch.__version__} makes blocks of {default} tokens; give that to BLOCK_SIZE in "
        "scoring/tree_masks.py, or measure whether the old size is as fast."
    )


def test_files_of_the_list_exist() -> None:
    assert all((PACKAGE / Path(use.split(": ")[0])).is_file() for uses in USES.values() for use in uses)
