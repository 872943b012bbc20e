"""`evaluate.Metric` modules, one file each, loaded by path: `evaluate.load(metric_path("response_loss"))`."""

from pathlib import Path


def metric_path(name: str) -> str:
    """
    Where a metric's module lies.

    Raises:
        ValueError: there is none of that name.
    """
    folder = Path(__file__).parent
    available = sorted(path.stem for path in folder.glob("[a-z]*.py"))
    if name not in available:
        raise ValueError(f"There is no metric {name!r}; available: {', '.join(available)}.")
    return str(folder / f"{name}.py")
