"""`miwv report`: the rounds of a run as text, as a page and as pictures."""

from pathlib import Path

from miwv_trainer.cli.options import ReportOptions
from miwv_trainer.cli.shared import find_scored_rows
from miwv_trainer.report.page import write_page
from miwv_trainer.report.png import write_pngs
from miwv_trainer.report.tables import format_left_out, format_rounds, format_scores
from miwv_trainer.report.texts import place_texts, read_texts
from miwv_trainer.storage.store import read_rounds


def report(options: ReportOptions) -> None:
    """Prints the rounds of a run, and writes the page and the charts beside them."""
    rounds = read_rounds(options.run_folder)
    texts = None
    if options.dataset is not None:
        columns = options.columns or rounds[-1].summary.get("columns")
        scored = find_scored_rows(options.dataset, rounds[-1], columns)
        print("\n".join(scored.notes), end="\n" if scored.notes else "")
        texts = read_texts(scored.rows.select(scored.places[scored.found]), columns)
        texts = place_texts(texts, scored.found.tolist(), len(scored.places))
    print(format_rounds(rounds))
    print(format_scores(rounds[-1], texts.prompts if texts is not None else None))
    left_out = format_left_out(rounds[-1])  # `miwv score` has logged it
    print(left_out, end="\n" if left_out else "")
    page, charts = write_page(Path(options.run_folder), rounds, texts)
    print(f"page: {page}")
    try:
        write_pngs(charts, page.parent)
    except ImportError:
        # The page holds the same charts, so a missing extra is no reason to fail.
        print("The charts as PNG files need matplotlib: pip install 'miwv-trainer[report]'.")
