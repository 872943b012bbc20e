"""`evaluate.Metric` modules, one file each, loaded by path: `evaluate.load(metric_path("response_loss"))`.

Each is a file of its own because `evaluate.load` copies the file to its cache and imports it from there.
"""

from importlib.resources import files


def metric_path(name: str) -> str:
    """
    The path of a metric's module, for `evaluate.load`.

    Raises:
        ValueError: there is no metric of that name.
    """
    folder = files(__name__)
    names = [file.name.removesuffix(".py") for file in folder.iterdir() if file.name.endswith(".py")]
    available = sorted(found for found in names if not found.startswith("_"))
    if name not in available:
        raise ValueError(f"There is no metric {name!r}; available: {', '.join(available)}.")
    return str(folder.joinpath(f"{name}.py"))
