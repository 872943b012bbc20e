"""What the numbers say, in sentences: the verdict, who wins at what, and what could have been shown."""

from collections.abc import Callable, Sequence

import numpy as np

from comparison.judgement import Judged, Pair
from comparison.statistics import LEVEL, Difference

Find = Callable[[Judged], Pair | None]
SHARES = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 10: "a tenth", 20: "a twentieth"}


def get_same_size(one: Judged) -> Pair | None:
    return one.same_size


def get_same_cost(one: Judged) -> Pair | None:
    return one.same_cost


def get_full(one: Judged) -> Pair | None:
    return one.full


COLUMNS: dict[str, Find] = {
    "At equal selection, against random draws of the same size": get_same_size,
    "At equal cost, against random draws of the same total compute with scoring included": get_same_cost,
    "Against the full set": get_full,
}


def list_where(judged: Sequence[Judged], find: Find, word: str) -> list[str]:
    """The arms whose difference is shown to be `"lower"` or `"higher"` by both weightings."""
    return [one.arm for one in judged if (found := find(one)) is not None and found.word == word]


def list_by_one(judged: Sequence[Judged], find: Find) -> str:
    """The arms that are lower by one of the weightings only, in brackets behind a sentence."""
    found = group(judged, find)
    partly = [f"{word}: {join(arms)}" for word, arms in found.items() if "lower" in word and word != "lower"]
    return f" ({'; '.join(partly)})" if partly else ""


def group(judged: Sequence[Judged], find: Find) -> dict[str, list[str]]:
    """The arms by what is shown of them: lower, higher, by one weighting only, or not shown."""
    found: dict[str, list[str]] = {"lower": [], "higher": []}
    for one in judged:
        if (pair := find(one)) is not None:
            found.setdefault(pair.description, []).append(one.arm)
    last = {"not shown": found.pop("not shown")} if "not shown" in found else {}
    return {word: arms for word, arms in (found | last).items() if arms}


def write_verdict(judged: Sequence[Judged]) -> str:
    """The verdict in one sentence: on the arms that are scored, and on those that need no scoring."""
    if not judged:
        return "No arm can be judged: all have diverged or have no runs."
    if max(len(one.losses) for one in judged) < 2:
        return "One seed shows nothing: give --seeds 2 or more."
    chosen = [one for one in judged if not one.is_baseline]
    scored = [one for one in chosen if one.is_scored]
    unscored = [one for one in chosen if not one.is_scored]
    free, partly = list_where(unscored, get_same_size, "lower"), list_by_one(unscored, get_same_size)
    if not scored:
        better = f"{join(free)}: lower" if free else "No arm is shown to have a lower"
        return f"{better} held-out loss than random draws of as many samples{partly}."
    parts = [_judge_at_equal_size(scored), _judge_at_equal_cost(scored)]
    if free:
        parts.append(
            f"{join(free)}, without scoring, trained a lower loss than random draws of as many samples{partly}"
        )
    elif partly:
        parts.append(f"without scoring, no arm is shown to be better than random draws of as many samples{partly}")
    return f"{'; '.join(part for part in parts if part)}."


def _judge_at_equal_size(scored: Sequence[Judged]) -> str:
    """The verdict on the arms that cost forwards before training, against draws that do not."""
    compared = [one for one in scored if one.same_size is not None]
    if not compared:
        return "No scored arm has random draws of as many samples to be held against"
    better, worse = (list_where(compared, get_same_size, word) for word in ("lower", "higher"))
    partly = list_by_one(compared, get_same_size)
    if better:
        return _tell_better(better, f"random draws of as many samples{partly}", join(worse))
    cost = describe_shares([one.size_ratio for one in compared])
    found = f"No scored arm is shown to be better than random draws of as many samples, which cost {cost}{partly}"
    if not worse:
        return found
    if len(worse) == len(compared) > 1:
        return f"{found}, and each of them is shown to be worse"
    return f"{found}, and {join(worse)} {'is' if len(worse) == 1 else 'are'} shown to be worse"


def _judge_at_equal_cost(scored: Sequence[Judged]) -> str:
    """The verdict against draws that cost as much, also where these win; nothing while they have no runs."""
    compared = [one for one in scored if one.same_cost is not None]
    if not compared:
        return ""
    better, worse = (list_where(compared, get_same_cost, word) for word in ("lower", "higher"))
    partly = list_by_one(compared, get_same_cost)
    beaten = "every scored arm" if len(worse) == len(scored) > 1 else join(worse)
    if better:
        return _tell_better(better, f"random draws at the same total cost{partly}", beaten)
    if worse:
        return f"random draws at the same total cost are shown to be better than {beaten}{partly}"
    return f"no scored arm is shown to be better than random draws at the same total cost{partly}"


def _tell_better(better: Sequence[str], draws: str, beaten: str) -> str:
    """The arms that are better than some draws, and those that these have beaten; `""` for none."""
    found = f"{join(better)}: lower held-out loss than {draws}"
    return f"{found}, which are shown to be better than {beaten}" if beaten else found


def describe_shares(ratios: Sequence[float]) -> str:
    """What draws cost of several arms: `a quarter to a third of the compute`."""
    low, high = share(max(ratios)), share(min(ratios))
    return low if low == high else f"{low.removesuffix(' of the compute')} to {high}"


def share(ratio: float) -> str:
    """What the cheaper of two costs is of the other: `a third of the compute`."""
    nearest = round(ratio)
    if nearest < 2:
        return f"{1 / ratio:.0%} of the compute"
    return f"{SHARES.get(nearest, f'1/{nearest}')} of the compute"


def write_statements(judged: Sequence[Judged]) -> list[str]:
    """Who wins at equal selection, at equal cost, and against the full set, and of how many that were tried."""
    if not judged:
        return []
    lines = [f"The lowest mean loss is that of {judged[0].arm} ({judged[0].loss:.4f} by response tokens)."]
    for where, find in COLUMNS.items():
        parts = [f"{word}: {join(arms)}" for word, arms in group(judged, find).items()]
        if parts:
            lines.append(f"{where}, {'; '.join(parts)}.")
    return lines


def describe_correction(judged: Sequence[Judged]) -> str:
    """How many differences were tried in each column, and that this is accounted for."""
    places = ("at equal selection", "at equal cost", "against the full set")
    tried = [sum(bool((pair := find(one)) and pair.tokens.parts) for one in judged) for find in COLUMNS.values()]
    counts = join([f"{count} {place}" for count, place in zip(tried, places, strict=True) if count])
    return (
        f'Differences that were tried: {counts or "none"}. "Lower" and "higher" are adjusted for their number in each '
        f"column (Holm): if no arm differed from another, any such word would stand in a column of a table with a "
        f"probability of at most {LEVEL:.0%}."
    )


def write_power(judged: Sequence[Judged]) -> str:
    """The smallest differences that could have been shown."""
    at_size, at_cost = (_describe_power(judged, find) for find in (get_same_size, get_same_cost))
    parts = [f"{part} {where}" for part, where in ((at_size, "at equal selection"), (at_cost, "at equal cost")) if part]
    if not parts:
        return (
            "Power: one seed has no interval, so no difference could have been shown. Give --seeds 2 or more, or let "
            "the comparison go on."
        )
    return (
        f"Power: the smallest difference that this comparison could have shown is {' and '.join(parts)} (by response "
        "tokens, medians over the arms). A true difference must be about as large as the first number in brackets to "
        "be shown in four of five such comparisons. The others are half of the 95 % interval that would be left with "
        "all samples that there could be (seeds alone) and with ever more seeds (samples alone)."
    )


def _describe_power(judged: Sequence[Judged], find: Find) -> str:
    differences = [pair.tokens for one in judged if (pair := find(one)) is not None and pair.tokens.parts]
    if not differences:
        return ""
    values: list[Callable[[Difference], float]] = [
        lambda one: one.smallest,
        lambda one: one.reliably_shown,
        lambda one: one.half_of_seeds,
        lambda one: one.half_of_samples,
    ]
    smallest, reliable, seeds, samples = (np.median([value(one) for one in differences]) for value in values)
    return f"{smallest:.4f} nats [{reliable:.4f}; seeds alone {seeds:.4f}, samples alone {samples:.4f}]"


def join(names: Sequence[str]) -> str:
    """`a, b and c`; a name with a comma, such as that of random draws of equal tokens, stands in quotes."""
    shown = [f'"{name}"' if "," in name else name for name in names]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""
