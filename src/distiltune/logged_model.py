"""The model in MLflow's own format, with the code that runs it and no pickle."""

import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distiltune.location import import_mlflow

# What the logged model needs where it is loaded.
MODEL_REQUIREMENTS = (
    "mlflow", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml", "safetensors", "tokenizers",
    "torch", "transformers",
)  # fmt: skip
# Kept with the logged model as its input example.
EXAMPLE = "The plot is thin, but the acting is superb."


def model_requirements() -> list[str]:
    """What the logged model is to be loaded with: the versions here."""
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}"
            for name in MODEL_REQUIREMENTS]  # fmt: skip


def log_model(
    client: Any,
    experiment: str,
    run_id: str,
    model: Path,
    package: Path,
    label_names: Iterable[str],
    requirements: Iterable[str],
    params: Mapping[str, Any],
) -> None:
    """Log a model to a run in place of what an earlier attempt has left.

    Args:
        client: MLflow's, of the store that is in use.
        experiment: the run's.
        run_id: need not be active here.
        model: the model's folder.
        package: this package's folder, as it was when the model was trained.
        label_names: the classes.
        requirements: the packages to load it with.
        params: of the run.
    """
    mlflow = import_mlflow()
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Schema

    probabilities = ["probability", *(f"probability_{n}" for n in label_names)]
    outputs = [ColSpec(DataType.string, "label")]
    outputs += [ColSpec(DataType.double, name) for name in probabilities]
    made = client.create_logged_model(
        experiment, name="model", source_run_id=run_id,
        params={name: str(value) for name, value in params.items()},
    )  # fmt: skip
    Model.log(
        artifact_path=None,
        name="model",
        model_id=made.model_id,
        flavor=mlflow.pyfunc,
        run_id=run_id,
        python_model=str(package / "serving.py"),
        artifacts={"model": str(model)},
        code_paths=[str(package)],
        signature=ModelSignature(Schema([ColSpec(DataType.string, "text")]), Schema(outputs)),
        input_example=pd.DataFrame({"text": [EXAMPLE]}),
        pip_requirements=list(requirements),
    )
    # What an attempt before this one has left.
    for logged in client.search_logged_models(
        [experiment], filter_string=f"source_run_id = '{run_id}'"
    ):
        if logged.model_id != made.model_id:
            client.delete_logged_model(logged.model_id)
