"""What the numbers say, in sentences: the verdict, who wins at what, and what could have been shown."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from comparison.judgement import Judged
from comparison.statistics import Difference

Find = Callable[[Judged], Difference | None]
SHARES = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 10: "a tenth", 20: "a twentieth"}


def get_same_size(one: Judged) -> Difference | None:
    return one.same_size


def get_same_cost(one: Judged) -> Difference | None:
    return one.same_cost


def get_full(one: Judged) -> Difference | None:
    return one.full


def list_where(judged: Sequence[Judged], find: Find, word: str) -> list[str]:
    """The arms whose difference is shown to be `"lower"` or `"higher"`, or is `"not shown"`."""
    return [one.arm for one in judged if (found := find(one)) is not None and found.word == word]


def write_verdict(judged: Sequence[Judged]) -> str:
    """The verdict in one sentence: on the arms that are scored, and on those that need no scoring."""
    if max(len(one.losses) for one in judged) < 2:
        return "One seed shows nothing: give --seeds 2 or more."
    chosen = [one for one in judged if not one.is_baseline]
    scored = [one for one in chosen if one.is_scored]
    free = list_where([one for one in chosen if not one.is_scored], get_same_size, "lower")
    if not scored:
        better = f"{join(free)}: lower" if free else "No arm is shown to have a lower"
        return f"{better} held-out loss than random draws of as many samples."
    parts = [_judge_scored(scored)]
    if free:
        parts.append(f"{join(free)}, without scoring, trained a lower loss than random draws of as many samples")
    return f"{'; '.join(parts)}."


def _judge_scored(scored: Sequence[Judged]) -> str:
    """The verdict on the arms that cost forwards before training."""
    better, cheaper = list_where(scored, get_same_size, "lower"), list_where(scored, get_same_cost, "lower")
    if cheaper:
        also = "" if set(cheaper) == set(better) else f" (at equal selection: {join(better) or 'none'})"
        return f"{join(cheaper)}: lower held-out loss than random draws of the same total cost{also}"
    if better:
        return (
            f"{join(better)}: lower held-out loss than random draws of as many samples, but no scored arm is shown to "
            f"be better than random draws of the same total cost{describe_worse(scored, get_same_cost)}"
        )
    cost, worse = share(min(one.size_ratio for one in scored)), describe_worse(scored, get_same_size)
    return f"No scored arm is shown to be better than random draws of as many samples, which cost {cost}{worse}"


def describe_worse(scored: Sequence[Judged], find: Find) -> str:
    """Which of the arms are shown to be worse, as the end of a sentence."""
    worse = list_where(scored, find, "higher")
    if not worse:
        return ""
    named = "each of them" if len(worse) == len(scored) > 1 else join(worse)
    return f", and {named} {'is' if len(worse) == 1 or named == 'each of them' else 'are'} shown to be worse"


def share(ratio: float) -> str:
    """What the cheaper of two costs is of the other: `a third of the compute`."""
    nearest = round(ratio)
    if nearest < 2:
        return f"{1 / ratio:.0%} of the compute"
    return f"{SHARES.get(nearest, f'1/{nearest}')} of the compute"


def write_statements(judged: Sequence[Judged]) -> list[str]:
    """Who wins at equal selection, at equal cost, and against the full set."""
    against: list[tuple[str, Find]] = [
        ("At equal selection, against random draws of the same size", get_same_size),
        ("At equal cost, against random draws of the same total compute with scoring included", get_same_cost),
        ("Against the full set", get_full),
    ]
    lines = [f"The lowest mean loss is that of {judged[0].arm} ({judged[0].loss:.4f})."]
    for where, find in against:
        found = {word: list_where(judged, find, word) for word in ("lower", "higher", "not shown")}
        parts = [f"{word}: {join(arms)}" for word, arms in found.items() if arms]
        if parts:
            lines.append(f"{where}, {'; '.join(parts)}.")
    return lines


def write_power(judged: Sequence[Judged]) -> str:
    """The smallest differences that could have been shown."""
    at_size, at_cost = (_describe_power(judged, find) for find in (get_same_size, get_same_cost))
    parts = [f"{part} {where}" for part, where in ((at_size, "at equal selection"), (at_cost, "at equal cost")) if part]
    if not parts:
        return "Power: one seed has no interval, so no difference could have been shown. Give --seeds 2 or more."
    return (
        f"Power: the smallest difference that this comparison could have shown is {' and '.join(parts)} (medians over "
        "the arms). A true difference must be about as large as the number in brackets to be shown in four of five "
        "such comparisons."
    )


def _describe_power(judged: Sequence[Judged], find: Find) -> str:
    differences = [found for one in judged if (found := find(one)) is not None and not math.isnan(found.half)]
    if not differences:
        return ""
    smallest, reliable, seeds, samples = (
        np.median([value(one) for one in differences])
        for value in (
            lambda one: one.smallest,
            lambda one: one.reliably_shown,
            lambda one: one.half,
            lambda one: (one.high - one.low) / 2,
        )
    )
    return f"{smallest:.4f} nats [{reliable:.4f}; seeds alone {seeds:.4f}, samples alone {samples:.4f}]"


def count_by_chance(judged: Sequence[Judged]) -> str:
    """How many differences there are, of which some are shown by chance alone."""
    count = sum(find(one) is not None for one in judged for find in (get_same_size, get_same_cost, get_full))
    return (
        f"Of {count} differences, about {0.05 * count:.1f} would leave zero outside of one interval of 95 % if no arm "
        "differed from another."
    )


def join(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
