"""`params.yaml`, parsed once into frozen dataclasses: `load(TrainConfig)`."""

from pathlib import Path

from distiltune.config.loading import load_params
from distiltune.config.schema import (
    AdafactorRow,
    AdamRow,
    AdaptTable,
    CheckpointRow,
    CsvRow,
    DistilBertArchitecture,
    ImdbRow,
    LionRow,
    ModelRow,
    MuonRow,
    OptimizerRow,
    Params,
    ResumeTable,
    SampleRow,
    SgdRow,
    SoapRow,
    SpeedTable,
    SplitRow,
    TokenizerRow,
)
from distiltune.config.stages import (
    AdaptConfig,
    CheckConfig,
    CheckpointConfig,
    DownloadConfig,
    EngineConfig,
    EvaluateConfig,
    SplitConfig,
    StageConfig,
    TokenizeConfig,
    TrainConfig,
    WatchConfig,
    select,
    tracked_params,
)

PARAMS_FILE = Path("params.yaml")

__all__ = [
    "AdafactorRow",
    "AdamRow",
    "AdaptConfig",
    "AdaptTable",
    "CheckConfig",
    "CheckpointConfig",
    "CheckpointRow",
    "CsvRow",
    "DistilBertArchitecture",
    "DownloadConfig",
    "EngineConfig",
    "EvaluateConfig",
    "ImdbRow",
    "LionRow",
    "ModelRow",
    "MuonRow",
    "OptimizerRow",
    "Params",
    "ResumeTable",
    "SampleRow",
    "SgdRow",
    "SoapRow",
    "SpeedTable",
    "SplitConfig",
    "SplitRow",
    "TokenizeConfig",
    "TokenizerRow",
    "TrainConfig",
    "WatchConfig",
    "load",
    "load_params",
    "tracked_params",
]


def load(config_class: type[StageConfig], path: Path = PARAMS_FILE) -> StageConfig:
    """Validate the whole of `params.yaml` and return what one stage reads of it.

    Raises:
        InputError: the file cannot be read, or holds mistakes; one line for each.
    """
    return select(config_class, load_params(path))
