"""The data of `dvc plots`, and the same as pictures for the MLflow UI."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, roc_curve

from distiltune.artifacts import write_csv
from distiltune.evaluation.metrics import Labels, Probabilities, calibration_bins

MAX_ROC_POINTS = 500


def write_plots(
    labels: Labels, probabilities: Probabilities, label_names: tuple[str, ...], folder: Path
) -> None:
    """Write confusion, ROC and calibration, each as CSV and as PNG.

    With more than two classes there is one ROC curve for each, against the rest.

    Args:
        labels: (num_reviews,), class indices.
        probabilities: (num_reviews, num_classes).
        label_names: the classes.
        folder: where to write `confusion`, `roc` and `calibration`.
    """
    predicted = probabilities.argmax(1)
    rows = [(label_names[a], label_names[p]) for a, p in zip(labels, predicted, strict=True)]
    write_csv(folder / "confusion.csv", ["actual", "predicted"], rows)
    figure, axes = _new_figure()
    ConfusionMatrixDisplay.from_predictions(
        labels, predicted, labels=range(len(label_names)), display_labels=label_names,
        ax=axes, cmap="Blues", colorbar=False,
    )  # fmt: skip
    axes.set_title("Confusion on the test split")
    _save(figure, folder / "confusion.png")

    figure, axes = _new_figure()
    points: list[tuple[str, float, float]] = []
    for i in [1] if len(label_names) == 2 else range(len(label_names)):
        is_class = labels == i
        if is_class.all() or not is_class.any():
            continue
        false_rate, true_rate, _ = roc_curve(is_class, probabilities[:, i])
        kept = np.unique(np.linspace(0, len(false_rate) - 1, MAX_ROC_POINTS).astype(int))
        points += [(label_names[i], false_rate[k], true_rate[k]) for k in kept]
        axes.plot(false_rate, true_rate, label=label_names[i])
    write_csv(folder / "roc.csv", ["class", "false_positive_rate", "true_positive_rate"], points)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="chance")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    axes.legend()
    _save(figure, folder / "roc.png")

    bins = calibration_bins(labels, probabilities)
    columns = ["confidence", "accuracy", "num_reviews"]
    write_csv(folder / "calibration.csv", columns, ([b[c] for c in columns] for b in bins))
    figure, axes = _new_figure()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect")
    axes.plot(
        [b["confidence"] for b in bins], [b["accuracy"] for b in bins], marker="o", label="model"
    )
    axes.set(xlabel="confidence", ylabel="accuracy", title="Calibration")
    axes.set(xlim=(1 / len(label_names) - 0.02, 1.02), ylim=(0, 1.02))
    axes.legend()
    _save(figure, folder / "calibration.png")


def _new_figure() -> tuple[Figure, Axes]:
    # Not through pyplot, which wants a screen where there is one.
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Figure, path: Path) -> None:
    # Without the version of matplotlib, so that equal plots are equal files.
    figure.savefig(path, dpi=110, metadata={"Software": None})
