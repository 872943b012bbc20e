"""What a file of Python code imports, calls and changes, read from its syntax tree, and which rules that breaks."""

import ast
import re
from collections.abc import Iterator

# What knows ranks, or is wrapped around a model because there are several; and what in there does not.
WITH_RANKS = ("torch.distributed", "transformers.integrations.deepspeed", "accelerate", "deepspeed", "peft")
WITHOUT_RANKS = ("accelerate.utils.memory",)
TRAINER = re.compile(r"transformers\.(Seq2Seq)?Train(er|ing)\w*|transformers\.trainer\w*(\.\w+)*|trl(\.\w+)*")
# Calls that change the disk. Calls that write a file at a given path, which must be a temporary one.
DISK = re.compile(
    r"os\.(replace|rename|remove|unlink|rmdir|removedirs|mkdir|makedirs|open|truncate|link|symlink)"
    r"|(shutil|tempfile)\.\w+|.*\.(write_text|write_bytes|unlink|rmdir|mkdir|touch|rename|symlink_to|hardlink_to)"
)
FILE = re.compile(
    r".*\.(to_parquet|to_json|to_csv|save_to_disk|save_pretrained|savefig|tofile|write_table|dump|save\w*)|save_file"
)
READERS = {"open", "from_pretrained", "load_dataset", "load_from_disk", "SentenceTransformer"}
ATOMIC = ("atomic_path", "atomic_folder")
RANDOM = re.compile(
    r"(np|numpy)\.random\.(?!(default_rng|get_state|set_state)$)\w+|random\.(?!(getstate|setstate)$)\w+"
    r"|torch\.(rand\w*|normal|bernoulli|multinomial|seed)|(.*\.)?(manual_seed\w*|set_seed|seed_everything)"
)
PICKLE = ("pickle", "marshal", "joblib", "dill", "cloudpickle", "shelve")


def list_imports(tree: ast.AST) -> set[str]:
    """Names of modules, and of what is taken from them, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def list_calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call, with the name of what is called as it is written, such as `os.replace` or `path.unlink`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def is_within(name: str, modules: tuple[str, ...]) -> bool:
    """Whether a name is one of the modules or lies in one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def find_ranks(tree: ast.AST) -> set[str]:
    """Imports of what knows ranks."""
    return {n for n in list_imports(tree) if is_within(n, WITH_RANKS) and not is_within(n, WITHOUT_RANKS)}


def find_trainers(tree: ast.AST) -> set[str]:
    """Imports of a Trainer, its arguments, its state or its callbacks."""
    return {name for name in list_imports(tree) if TRAINER.fullmatch(name)}


def find_disk_access(tree: ast.AST) -> set[str]:
    """Imports and calls that reach files at all, themselves or in a library that loads a model or a dataset."""
    reached = {name for name in list_imports(tree) if is_within(name, ("os", "pathlib", "shutil", "tempfile", "io"))}
    return reached | {name for name, _ in list_calls(tree) if name.rpartition(".")[2] in READERS}


def find_disk_changes(tree: ast.AST) -> set[str]:
    """Calls that change the disk, and calls that write a file outside of a `with atomic_path(...)` block."""
    safe = set(_list_calls_in_blocks(tree, ATOMIC))
    return {
        name
        for name, call in list_calls(tree)
        if DISK.fullmatch(name) or _opens_for_writing(name, call) or (FILE.fullmatch(name) and call not in safe)
    }


def _list_calls_in_blocks(tree: ast.AST, makers: tuple[str, ...]) -> Iterator[ast.Call]:
    """The calls in the bodies of `with` blocks whose contexts are made by one of these functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            made = [item.context_expr for item in node.items]
            if any(isinstance(each, ast.Call) and ast.unparse(each.func) in makers for each in made):
                yield from (call for statement in node.body for _, call in list_calls(statement))


def _opens_for_writing(name: str, call: ast.Call) -> bool:
    if name.rpartition(".")[2] != "open":
        return False
    first_mode = 0 if re.fullmatch(r"\w*path\w*\.open", name) else 1
    modes = [*call.args[first_mode : first_mode + 1], *(each.value for each in call.keywords if each.arg == "mode")]
    return any(not isinstance(mode, ast.Constant) or set("wax+") & set(str(mode.value)) for mode in modes)


def find_global_randomness(tree: ast.AST) -> set[str]:
    """Calls that draw from a global generator or seed it."""
    return {name for name, _ in list_calls(tree) if RANDOM.fullmatch(name)}


def find_patches(tree: ast.AST) -> set[str]:
    """Attributes and items of imported modules and classes that are assigned or deleted."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {alias.asname or alias.name.split(".")[0] for node in imports for alias in node.names}
    changed = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del)
    ]
    changed += [ast.unparse(call.args[0]) for name, call in list_calls(tree) if name in ("setattr", "delattr")]
    return {written for written in changed if re.split(r"\W", written)[0] in imported}


def find_unsafe_loading(tree: ast.AST) -> set[str]:
    """Pickles, under any name, and code of strangers."""
    found = {name for name in list_imports(tree) if is_within(name, PICKLE)}
    for name, call in list_calls(tree):
        keywords = {each.arg: ast.unparse(each.value) for each in call.keywords}
        if name in ("torch.save", "torch.load", "eval", "exec") or "trust_remote_code" in keywords:
            found.add(name)
        if name in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
            found.add(name)
    return found
