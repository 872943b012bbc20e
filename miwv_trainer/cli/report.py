"""`miwv report`: the rounds of a run as text, as a page and as pictures."""

import argparse
from pathlib import Path

from miwv_trainer.cli.shared import read_rounds, read_scored_rows
from miwv_trainer.report.page import write_page
from miwv_trainer.report.png import write_pngs
from miwv_trainer.report.tables import format_rounds, format_scores
from miwv_trainer.report.texts import read_texts


def report(arguments: argparse.Namespace) -> None:
    """`miwv report`: the rounds of a run as text, as a page and as pictures."""
    rounds = read_rounds(arguments.run_folder)
    texts = None
    if arguments.dataset is not None:
        texts = read_texts(read_scored_rows(arguments.dataset, rounds[-1]))
    print(format_rounds(rounds))
    print(format_scores(rounds[-1], texts.prompts if texts is not None else None))
    page, charts = write_page(Path(arguments.run_folder), rounds, texts)
    print(f"page: {page}")
    try:
        write_pngs(charts, page.parent)
    except ImportError:
        print("The charts as PNG files need matplotlib: pip install 'miwv-trainer[report]'.")
