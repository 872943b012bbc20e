"""How many samples two selections share."""

import datasets
import evaluate

_DESCRIPTION = """
Compares pairs of selections: the share of the first that the second contains, the Jaccard index of the two and, if the
pool's size is given, the share that a random selection of the second one's size would contain. Means over the pairs.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of list of int): selections, as pool indices.
    references (list of list of int): for each, the selection that it is compared with.
    pool_size (int, optional): number of samples in the pool.
Returns:
    overlap (float), jaccard (float), and with `pool_size` overlap_by_chance (float).
Raises:
    ValueError: there is no pair, or a selection is empty, names a sample twice or names one that is not in the pool.
Examples:
    >>> metric = evaluate.load(metric_path("selection_overlap"))
    >>> metric.compute(predictions=[[1, 2, 3, 4]], references=[[3, 4, 5]], pool_size=10)
    {'overlap': 0.5, 'jaccard': 0.4, 'overlap_by_chance': 0.3}
"""


class SelectionOverlap(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        indices = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": indices, "references": indices}),
        )

    def _compute(
        self, predictions: list[list[int]], references: list[list[int]], pool_size: int | None = None
    ) -> dict[str, float]:
        if not predictions:
            raise ValueError("There are no selections to compare; give at least one pair.")
        pairs = [
            (_check_members(one, pool_size), _check_members(other, pool_size))
            for one, other in zip(predictions, references, strict=True)
        ]
        result = {
            "overlap": _average([len(one & other) / len(one) for one, other in pairs]),
            "jaccard": _average([len(one & other) / len(one | other) for one, other in pairs]),
        }
        if pool_size is not None:
            # A random sample lies in the second selection with this probability, whatever the first one's size is.
            result["overlap_by_chance"] = _average([len(other) / pool_size for _, other in pairs])
        return result


def _check_members(selection: list[int], pool_size: int | None) -> set[int]:
    # A sample named twice would count twice in one direction of the comparison and once in the other.
    members = set(selection)
    if not members or len(members) != len(selection):
        raise ValueError(
            f"A selection must name at least one sample, and none twice, but got {len(selection)} indices of "
            f"{len(members)} samples."
        )
    if min(members) < 0 or (pool_size is not None and max(members) >= pool_size):
        raise ValueError(
            f"A selection names samples {min(members)} to {max(members)}, but indices begin at 0"
            + (f" and the pool has {pool_size} samples." if pool_size is not None else ".")
        )
    return members


def _average(values: list[float]) -> float:
    return sum(values) / len(values)
