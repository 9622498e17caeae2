"""The page of a run: one file with all it shows."""

import tempfile
from pathlib import Path

from distiltune.artifacts import new_file
from distiltune.comparison.tables import memory, percent
from distiltune.pages import as_data_uri, load_template
from distiltune.reporting.figures import CURVES, LENGTHS, draw_curves, draw_lengths
from distiltune.reporting.model import FinishedRun
from distiltune.reporting.words import (
    accuracy_text,
    audit_rows,
    confusion_rows,
    cost_rows,
    length_name,
    metric_rows,
    moment,
    setting_groups,
)

TEMPLATE = Path(__file__).with_name("run.html.jinja")
# What of a review is read at once; the rest is behind a line to open.
SHOWN_CHARACTERS = 280


def write_page(run: FinishedRun, file: Path) -> None:
    """Write the page aside, and put it in its place."""
    page = render_page(run)
    with new_file(file) as partial:
        partial.write_text(page, encoding="utf-8")


def render_page(run: FinishedRun) -> str:
    """The page as HTML; the template escapes all that comes from outside."""
    facts, test = run.facts, run.test
    with tempfile.TemporaryDirectory() as temporary:
        drawn = {name: Path(temporary) / name for name in (CURVES, LENGTHS)}
        draw_curves(run, drawn[CURVES])
        draw_lengths(run, drawn[LENGTHS])
        files = {**run.pictures, **drawn}
        pictures = {name.removesuffix(".png"): as_data_uri(path) for name, path in files.items()}
    metric_columns, metrics = metric_rows(run)
    split_names, audited = audit_rows(run.split)
    return load_template(TEMPLATE).render(
        run=run,
        params=facts["params"],
        tags=facts["tags"],
        pictures=pictures,
        accuracy=accuracy_text(test),
        num_reviews=f"{test['num_reviews']:,}",
        started=moment(run.summary["started"]),
        ended=moment(run.summary["ended"]),
        metric_columns=metric_columns,
        metrics=metrics,
        label_names=facts["label_names"],
        confusion=confusion_rows(run),
        lengths=[
            (length_name(part["num_tokens"]), f"{part['num_reviews']:,}", accuracy_text(part))
            for part in test["accuracy_by_length"]
        ],
        epochs=_epoch_rows(run),
        kept=run.summary["kept_epoch"],
        mistakes=[
            (*_cut(str(text)), label, predicted, f"{percent(probability)} %")
            for text, label, predicted, probability in run.mistakes
        ],
        costs=cost_rows(run),
        split_names=split_names,
        audited=audited,
        groups=setting_groups(facts["params"]),
        outputs=[(o.stage, o.path, o.digest, memory(o.num_bytes)) for o in run.outputs],
    )


def _epoch_rows(run: FinishedRun) -> list[list[str]]:
    """Epoch, step, and loss and accuracy of training and validation, seconds."""

    def share(record: dict[str, float], name: str) -> str:
        return f"{percent(record[name])} %" if name in record else "-"

    return [
        [
            f"{record['epoch']:.0f}",
            f"{record['step']:,.0f}",
            f"{record['train_loss']:.4f}",
            share(record, "train_accuracy"),
            f"{record['validation_loss']:.4f}",
            share(record, "validation_accuracy"),
            f"{record['train_seconds']:,.1f}",
        ]
        for record in run.epochs
    ]


def _cut(text: str) -> tuple[str, str]:
    """The beginning of a text, up to the end of a word where there is one, and the rest."""
    if len(text) <= SHOWN_CHARACTERS:
        return text, ""
    end = text.rfind(" ", SHOWN_CHARACTERS // 2, SHOWN_CHARACTERS)
    end = end if end > 0 else SHOWN_CHARACTERS
    return text[:end], text[end:]
