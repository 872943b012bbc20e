"""`miwv select` to files that others load: equal rows, honest cards, nothing half written, a real upload."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from huggingface_hub import DatasetCard

from miwv_trainer.cli import main
from miwv_trainer.config import MIWVConfig
from miwv_trainer.export import Origin, card, write_dataset
from miwv_trainer.store import Store
from tests.tiny import instruction_rows, save_tiny, tiny_tokenizer

ROWS = [{**row, "number": index, "tags": ["a", "b"][: index % 3]} for index, row in enumerate(instruction_rows(20))]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    model = save_tiny(folder / "model")
    tiny_tokenizer().save_pretrained(model)
    pool = folder / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = f"score --model {model} --dataset {pool} --output {folder / 'out'} --fraction 0.2 --embedder tfidf"
    assert main(command.split()) == 0
    return folder


def select(scored: Path, options: str) -> int:
    return main(f"select --scores {scored / 'out'} --fraction 0.25 --dataset {scored / 'pool.jsonl'} {options}".split())


def best(scored: Path) -> list[dict[str, Any]]:
    """The quarter of highest MIWV, by hand."""
    miwv = Store(scored / "out").read_round(0).column("miwv")
    return [ROWS[index] for index in sorted(np.argsort(-miwv, kind="stable")[:5].tolist())]


def load(*arguments: str, cache: Path, **options: Any) -> list[dict[str, Any]]:
    return list(datasets.load_dataset(*arguments, split="train", cache_dir=str(cache), **options))


def test_every_format_loads_as_the_rows_that_were_chosen(scored: Path, tmp_path: Path) -> None:
    expected = best(scored)
    for kind, name in (("jsonl", "a.jsonl"), ("parquet", "a.parquet"), ("dataset", "a")):
        assert select(scored, f"--format {kind} --to {tmp_path / name}") == 0
    assert load("json", data_files=str(tmp_path / "a.jsonl"), cache=tmp_path / "cache") == expected
    assert load("parquet", data_files=str(tmp_path / "a.parquet"), cache=tmp_path / "cache") == expected
    assert load(str(tmp_path / "a"), cache=tmp_path / "cache") == expected


def test_the_card_says_where_the_samples_come_from(scored: Path, tmp_path: Path) -> None:
    assert select(scored, f"--format dataset --to {tmp_path / 'a'} --min-response-tokens 2") == 0
    card = DatasetCard.load(tmp_path / "a" / "README.md")
    assert card.data.size_categories == ["n<1K"] and "miwv" in card.data.tags
    summary = Store(scored / "out").read_round(0).summary
    facts = json.loads((tmp_path / "a" / "selection.json").read_text())
    assert facts["model"] == str(scored / "model") and facts["dataset"] == str(scored / "pool.jsonl")
    assert facts["fingerprint of the pool"] == summary["fingerprint"]["pool"]
    assert facts["chat template"].startswith("the tokenizer's, sha256 ")
    assert facts["guards"] == "min_response_tokens=2" and facts["fraction"] == 0.25 and facts["selected"] == 5
    for name, value in facts.items():
        assert f"- {name}: " in card.text and str(value) in card.text
    assert f'load_dataset("{tmp_path / "a"}", split="train")' in card.text


def test_the_card_of_hostile_names_is_still_a_card(scored: Path, tmp_path: Path) -> None:
    current = Store(scored / "out").read_round(0)
    origin = Origin(current, "---\n# a `b` <script>x</script>", MIWVConfig(fraction=0.25), 0.5)
    text = card({**origin.facts(), "selected": 5}, "me/mine")
    head, body = text.split("\n---\n", 1)
    assert yaml.safe_load(head.removeprefix("---\n"))["configs"][0]["config_name"] == "default"
    assert "`--- # a 'b' <script>x</script>`" in body and "\n# a" not in body


def test_without_format_it_is_json_lines_beside_the_scores(scored: Path) -> None:
    assert select(scored, "") == 0
    lines = (scored / "out" / "selected.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == best(scored)


def test_a_folder_of_its_own_is_replaced_and_another_one_refused(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, other, file = tmp_path / "mine", tmp_path / "other", tmp_path / "file"
    assert select(scored, f"--format dataset --to {mine}") == 0
    assert select(scored, f"--format dataset --to {mine} --fraction 0.5") == 0
    assert len(load(str(mine), cache=tmp_path / "cache")) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "mine"]
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    file.write_text("mine")
    for taken in (other, file):
        assert select(scored, f"--format dataset --to {taken}") == 2
        assert "is there already and was not written by `miwv select`" in capsys.readouterr().err
    assert (other / "thesis.txt").read_text() == file.read_text() == "mine"


def test_a_folder_that_cannot_be_finished_leaves_the_earlier_one(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, current = datasets.Dataset.from_list(ROWS), Store(scored / "out").read_round(0)
    origin = Origin(current, "pool", MIWVConfig(fraction=0.1), 0.5)
    write_dataset(tmp_path / "a", rows, np.arange(3), origin, "a")

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(datasets.Dataset, "to_parquet", full)
    with pytest.raises(OSError, match="No space left"):
        write_dataset(tmp_path / "a", rows, np.arange(5), origin, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    monkeypatch.undo()
    assert load(str(tmp_path / "a"), cache=tmp_path / "cache") == ROWS[:3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--private", "`--private` says how a dataset is pushed: give `--push-to-hub NAME`, or leave it out"),
        ("--push-to-hub me/mine --format parquet", "uploads a dataset folder: leave `--format parquet` out"),
        ("--push-to-hub me/mine", "needs a token of the Hugging Face Hub that may write: run `hf auth login`"),
    ],
)
def test_what_does_not_go_together_is_refused(
    scored: Path, options: str, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert select(scored, options) == 2
    assert words in capsys.readouterr().err
    assert not (scored / "out" / "selected").exists()


@pytest.mark.parametrize("option", ["--format parquet", "--to a", "--push-to-hub me/mine"])
def test_samples_are_only_written_from_a_dataset(scored: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"select --scores {scored / 'out'} --fraction 0.25 {option}".split()) == 2
    name = option.split()[0]
    assert f"`{name}` writes the samples themselves: give the pool as `--dataset`" in capsys.readouterr().err


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for."""

    asked: list[tuple[str, str]]
    committed: list[dict[str, Any]]

    def answer(self, found: Any) -> None:
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.asked.append((self.path.split("?")[0], self.headers.get("Authorization", "")))
        if self.path.endswith("/preupload/main"):
            paths = [each["path"] for each in json.loads(body)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            self.answer({"files": files})
        elif "/commit/main" in self.path:
            self.committed += [json.loads(line) for line in body.splitlines()]
            address = f"http://{self.headers['Host']}/datasets/me/mine/commit/{'0' * 40}"
            self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": address, "hookOutput": ""})
        elif self.path == "/api/repos/create":
            self.committed.append({"key": "create", "value": json.loads(body)})
            self.answer({"url": f"http://{self.headers['Host']}/datasets/me/mine", "name": "me/mine", "id": "1"})
        else:
            self.answer({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        self.answer({"id": "me/mine", "sha": "0" * 40, "siblings": [], "name": "me", "tags": [], "downloads": 0})

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    handler = type("Session", (Hub,), {"asked": [], "committed": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()


def test_the_folder_is_uploaded_through_huggingface_hub(
    scored: Path, tmp_path: Path, hub: tuple[str, type[Hub]]
) -> None:
    address, handler = hub
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": address, "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1"}
    options = f"--scores {scored / 'out'} --fraction 0.25 --dataset {scored / 'pool.jsonl'} --to {tmp_path / 'a'}"
    command = [
        sys.executable,
        "-m",
        "miwv_trainer",
        "select",
        *options.split(),
        "--push-to-hub",
        "me/mine",
        "--private",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "pushed: " in done.stdout and "datasets/me/mine" in done.stdout and "hf_secret" not in done.stdout
    assert all(token == "Bearer hf_secret" for _, token in handler.asked)
    made = next(line["value"] for line in handler.committed if line["key"] == "create")
    assert made["type"] == "dataset" and made["visibility"] == "private"
    uploaded = {line["value"]["path"] for line in handler.committed if line["key"] == "file"}
    assert uploaded == {"README.md", "selection.json", "data/train-00000-of-00001.parquet"}
    assert 'load_dataset("me/mine", split="train")' in (tmp_path / "a" / "README.md").read_text()
