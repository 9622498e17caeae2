"""What can befall the folder of a trained model."""

import json
import math
from pathlib import Path

from safetensors.torch import load_file, save_file

from distiltune.artifacts import RUN_FILE, WEIGHTS_FILE


def cut_the_weights(folder: Path) -> None:
    file = folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100])


def lose_a_layer(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    del weights["classifier.weight"]
    save_file(weights, folder / WEIGHTS_FILE, {"format": "pt"})


def make_weights_nan(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    weights["classifier.weight"] *= math.nan
    save_file(weights, folder / WEIGHTS_FILE, {"format": "pt"})


def name_a_third_class(folder: Path) -> None:
    change_settings(folder, label_names=["a", "b", "c"])


def change_settings(folder: Path, **changes: object) -> None:
    facts = json.loads((folder / RUN_FILE).read_text())
    (folder / RUN_FILE).write_text(json.dumps({**facts, **changes}))
