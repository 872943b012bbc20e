"""What a comparison keeps on disk: its settings, and a file for each run, whole or not there."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS_FILE, RUNS = "settings.json", "runs"


@dataclass(frozen=True)
class Result:
    """
    One run.

    Args:
        arm: Its name.
        rate: Learning rate; 0 for the untrained model.
        seed: Seed of the adapter, of the order and of random draws.
        identity: What the arm is: the fields of its configuration, and what it may cost.
        samples: Number of selected samples that were trained; of the first selection where there are several, and of
            the full set, all of them.
        tokens: Number of their response tokens.
        steps: Optimizer steps.
        seen: How often a sample was trained on, on average.
        trained_tokens: Tokens of all training batches, padding included.
        scoring_tokens: Tokens forwarded to score the pool, in all rounds.
        shares: Of the selected samples, the share that has a fault or was known.
        losses: For each set of evaluation samples, the mean loss of each response.
        exact_match: Share of generations that equal their reference; NaN without generations.
        rouge_l: ROUGE-L of the generations, from 0 to 1; NaN without generations.
        seconds: Time of training and evaluation.
    """

    arm: str
    rate: float
    seed: int
    identity: dict[str, Any]
    samples: int
    tokens: int
    steps: int
    seen: float
    trained_tokens: int
    scoring_tokens: int
    shares: dict[str, float] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    exact_match: float = float("nan")
    rouge_l: float = float("nan")
    seconds: float = 0.0

    @property
    def compute(self) -> int:
        """Tokens forwarded in all, a trained one counted three times."""
        return self.scoring_tokens + 3 * self.trained_tokens

    def loss(self, name: str, weights: np.ndarray) -> float:
        """The loss over all response tokens of a set of samples, without those that have none (too long, say)."""
        losses = np.asarray(self.losses[name])
        is_finite = np.isfinite(losses)
        return float(losses[is_finite] @ weights[is_finite] / weights[is_finite].sum())


def write_json(path: Path, values: object) -> None:
    """Writes a file as a whole."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file as a whole, so that a process that is killed while it writes leaves what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(written, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(written, path)


def write_result(path: Path, result: Result) -> None:
    """Writes the file of one run."""
    write_json(path, asdict(result))


def read_result(path: Path) -> Result | None:
    """The result of a run, or None if there is none yet."""
    if not path.is_file():
        return None
    return Result(**json.loads(path.read_text(encoding="utf-8")))


def is_made_by(result: Result | None, identity: dict[str, Any], is_derived: bool) -> bool:
    """
    Whether a result is of a run as it is asked for.

    Args:
        identity: What the arm is in this call.
        is_derived: Whether it follows from the other arms, so that another one is simply run again.

    Raises:
        SystemExit: it was made by another configuration that was given the same name.
    """
    if result is None:
        return False
    # Through JSON, which knows no tuples.
    if result.identity == json.loads(json.dumps(identity)):
        return True
    if is_derived:
        return False
    raise SystemExit(
        f"The arm {result.arm!r} was run as {describe(result.identity)}, not as {describe(identity)}. Give it another "
        "name, or give another --output."
    )


def describe(identity: dict[str, Any]) -> str:
    """An arm's configuration as it is typed."""
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in identity.items()) or "the default"


def check_settings(folder: Path, described: dict[str, Any], data: dict[str, str]) -> None:
    """
    Writes the settings of a comparison that begins, and compares them where it is continued.

    Args:
        described: The options that decide the results.
        data: Fingerprints of all samples.

    Raises:
        SystemExit: the results there come from other options or samples.
    """
    path = folder / SETTINGS_FILE
    described, data = json.loads(json.dumps(described)), json.loads(json.dumps(data))
    if not path.is_file():
        write_json(path, {"settings": described, "data": data})
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, value in described.items():
        before = found["settings"].get(name)
        if before != value:
            option = "--" + name.replace("_", "-")
            raise SystemExit(f"{path} was made with {option} {before}, not {value}: give that, or another --output.")
    if found.get("data") != data:
        raise SystemExit(f"{path} was made with other samples, though of the same name: give another --output.")


def estimate_seconds(done: Sequence[Result], left: Sequence[tuple[str, int]], processes: int) -> float | None:
    """
    Time until all runs are done; None where nothing has been trained yet.

    Args:
        done: The runs that have ended.
        left: Name of the arm and planned tokens of each run that has not.
        processes: Among how many the runs are dealt.
    """
    trained = sum(result.trained_tokens for result in done)
    if not trained:
        return None
    rate = sum(result.seconds for result in done) / trained
    by_arm: dict[str, list[float]] = {}
    for result in done:
        by_arm.setdefault(result.arm, []).append(result.seconds)
    times = [float(np.mean(by_arm[arm])) if arm in by_arm else rate * tokens for arm, tokens in left]
    return sum(times) / processes
