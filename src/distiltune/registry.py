"""MLflow's model registry: who is the champion, by the validation split alone."""

import csv
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distiltune.artifacts import RUN_FILE, read_json
from distiltune.location import import_mlflow

CHAMPION = "champion"
VERDICT_TAG = "registry"  # of the run: what became of it here, and why
RECORD = "record"  # the run's artifacts with its facts and its answers
ANSWERS_FILE = "validation.csv"  # label and predicted class of each review
ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model answered on its validation split."""

    reviews_sha256: str
    labels: tuple[str, ...]
    predicted: tuple[str, ...]

    @property
    def is_right(self) -> list[bool]:
        return [a == b for a, b in zip(self.labels, self.predicted, strict=True)]

    @property
    def accuracy(self) -> float:
        return sum(self.is_right) / len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a model takes the champion's place, and why."""

    is_better: bool
    reason: str


def read_answers(facts: Path, answers: Path) -> Answers:
    """Read what `train` has written.

    Args:
        facts: the run's `run.json`.
        answers: the history's `validation.csv`.

    Raises:
        InputError: one is damaged.
        FileNotFoundError: one is not there.
    """
    with answers.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return Answers(
        reviews_sha256=read_json(facts)["validation_reviews"],
        labels=tuple(row["label"] for row in rows),
        predicted=tuple(row["predicted"] for row in rows),
    )


def judge(challenger: Answers, champion: Answers) -> Verdict:
    """Compare two models on the same validation reviews, by McNemar's test in its exact form.

    It speaks of these two models (McNemar 1947, Psychometrika 12:153), as is asked here, and
    not of the variants that they come from.

    Args:
        challenger: the new one's answers.
        champion: those of the one in place.
    """
    from scipy.stats import binomtest

    if challenger.reviews_sha256 != champion.reviews_sha256:
        return Verdict(is_better=False, reason="validated on other reviews than the champion")
    pairs = list(zip(challenger.is_right, champion.is_right, strict=True))
    gains, losses = pairs.count((True, False)), pairs.count((False, True))
    p = binomtest(gains, gains + losses).pvalue if gains + losses else 1.0
    is_better = gains > losses and p < ALPHA
    figures = (
        f"validation accuracy {challenger.accuracy:.2%}, the champion's {champion.accuracy:.2%}: "
        f"{gains} of {len(pairs):,} reviews won, {losses} lost (exact McNemar test, p = {p:.2g})"
    )
    return Verdict(
        is_better=is_better,
        reason=f"better than the champion by more than noise: {figures}"
        if is_better
        else f"not better than the champion by more than noise: {figures}",
    )


def register_if_better(
    client: Any, name: str, experiment: str, run_id: str, record: Sequence[Path]
) -> str:
    """Make a run's model the champion if its validation answers are better; or say why not.

    Asked once more, it does nothing that is done. One at a time: between the look at the champion
    and the change another's could be lost.

    Args:
        client: MLflow's.
        name: of the registered model.
        experiment: the run's.
        run_id: of a run whose model is logged, if MLflow took it.
        record: the run's facts and its answers, as `read_answers` takes them.

    Returns:
        What was found, which is noted in the run's tag `registry` too.

    Raises:
        MlflowException: the store, or the way to it, fails.
    """
    champion = _champion(client, name)
    if champion is not None and champion.run_id == run_id:
        return f"{name} version {champion.version} is the {CHAMPION} already"
    challenger = read_answers(*record)
    models = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    if not models:
        verdict = Verdict(is_better=False, reason="MLflow has no model of this run")
    elif champion is None:
        verdict = Verdict(
            is_better=True,
            reason=f"the first one: validation accuracy {challenger.accuracy:.2%}",
        )
    else:
        verdict = _judge_stored(client, challenger, champion)
    text = f"not registered as {name}: {verdict.reason}"
    if verdict.is_better:
        version = _version_of(client, name, models[0], run_id, verdict.reason)
        client.set_registered_model_alias(name, CHAMPION, version)
        text = f"{name} version {version} is the {CHAMPION}: {verdict.reason}"
    client.set_tag(run_id, VERDICT_TAG, text)
    return text


def _champion(client: Any, name: str) -> Any:
    exceptions = import_mlflow().exceptions
    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except exceptions.MlflowException as error:
        # The second is how MLflow calls a model without that alias.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    return None


def _judge_stored(client: Any, challenger: Answers, champion: Any) -> Verdict:
    """Compare with the champion's record in MLflow."""
    exceptions = import_mlflow().exceptions
    with tempfile.TemporaryDirectory() as folder:
        try:
            facts, answers = (
                Path(client.download_artifacts(champion.run_id, f"{RECORD}/{file}", folder))
                for file in (RUN_FILE, ANSWERS_FILE)
            )
        except (exceptions.MlflowException, FileNotFoundError) as error:
            if getattr(error, "error_code", "RESOURCE_DOES_NOT_EXIST") != "RESOURCE_DOES_NOT_EXIST":
                raise
            return Verdict(
                is_better=False,
                reason=f"version {champion.version}, the {CHAMPION}, has no record of its "
                "validation any more; move the alias by hand",
            )
        return judge(challenger, read_answers(facts, answers))


def _version_of(client: Any, name: str, model: Any, run_id: str, reason: str) -> str:
    """The version of a run's model in the registry, made if it is not there."""
    exceptions = import_mlflow().exceptions
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    try:
        client.create_registered_model(
            name,
            description=f"`models:/{name}@{CHAMPION}` is the model that answered best on its "
            "validation split, by more than noise.",
        )
    except exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    version = str(
        known[0].version
        if known
        else client.create_model_version(
            name,
            model.artifact_location,
            run_id=run_id,
            description=reason,
            model_id=model.model_id,
        ).version
    )
    # A server does that by itself, for the UI's page of the model; a database does not.
    listed = json.loads(model.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    if not any(one["name"] == name and str(one["version"]) == version for one in listed):
        listed.append({"name": name, "version": version})
        client.set_logged_model_tags(model.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(listed)})
    return version
