"""MLflow's model registry: who is the champion, by the validation split alone."""

import csv
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distiltune import InputError
from distiltune.artifacts import ANSWERS_FILE, RUN_FILE, read_json
from distiltune.location import import_mlflow

CHAMPION = "champion"
VERDICT_TAG = "registry"  # of the run, with /NAME behind it: what became of it there
RECORD = "record"  # the run's artifacts with its facts and its answers
ALPHA = 0.05
MAX_TAG = 5000  # characters that MLflow takes


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
        InputError: one is not there, damaged, or of a version that wrote no such thing.
    """
    try:
        with answers.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        found = Answers(
            reviews_sha256=read_json(facts)["validation_reviews"],
            labels=tuple(row["label"] for row in rows),
            predicted=tuple(row["predicted"] for row in rows),
        )
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{answers.name} or {facts.name}: damaged ({error!r})") from None
    if not rows:
        raise InputError(f"{answers.name}: has no answers")
    return found


def judge(challenger: Answers, champion: Answers, num_before: int = 0) -> Verdict:
    """Compare two models on the same validation reviews, by McNemar's test in its exact form.

    It speaks of these two models (McNemar 1947, Psychometrika 12:153), as is asked here, and
    not of the variants that they come from. The k-th that challenges the same champion has to
    show it at 0.05 / (k (k + 1)). These add up to 0.05, so that one that is as good as all who
    come is replaced by noise in less than 5 % of cases, however many come (Bonferroni).

    Args:
        challenger: the new one's answers.
        champion: those of the one in place.
        num_before: challengers that it has withstood.
    """
    from scipy.stats import binomtest

    if (challenger.reviews_sha256, challenger.labels) != (champion.reviews_sha256, champion.labels):
        return Verdict(is_better=False, reason="validated on other reviews than the champion")
    pairs = list(zip(challenger.is_right, champion.is_right, strict=True))
    gains, losses = pairs.count((True, False)), pairs.count((False, True))
    p = binomtest(gains, gains + losses).pvalue if gains + losses else 1.0
    limit = ALPHA / ((num_before + 1) * (num_before + 2))
    is_better = gains > losses and p < limit
    figures = (
        f"validation accuracy {challenger.accuracy:.2%}, the champion's {champion.accuracy:.2%}: "
        f"{gains} of {len(pairs):,} reviews won, {losses} lost (exact McNemar test, p = {p:.2g}, "
        f"limit {limit:.2g} for challenger {num_before + 1})"
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

    A run is judged once: an alias that somebody moved by hand stays where it is. Cut off and
    asked again, it does nothing that is done. One at a time, please: between the look at the
    champion and the change another's could be lost.

    Args:
        client: MLflow's.
        name: of the registered model.
        experiment: the run's.
        run_id: of a run whose model is logged, if MLflow took it.
        record: the run's facts and its answers, as `read_answers` takes them.

    Returns:
        What was found, which is noted in the run's tag `registry/NAME` too.

    Raises:
        MlflowException: the store, or the way to it, fails.
    """
    tag = f"{VERDICT_TAG}/{name}"
    noted = client.get_run(run_id).data.tags.get(tag)
    if noted is not None:
        return str(noted)
    from mlflow.entities import LoggedModelStatus

    models = [
        model
        for model in client.search_logged_models(
            [experiment], filter_string=f"source_run_id = '{run_id}'"
        )
        if model.status == LoggedModelStatus.READY
    ]
    champion = _champion(client, name)
    if champion is not None and champion.run_id == run_id:
        # It was cut off between the alias and the tag.
        text = f"{name} version {champion.version} is the {CHAMPION}: {champion.description}"
    elif not models:
        text = f"not registered as {name}: MLflow has no whole model of this run"
    else:
        verdict = _judge_stored(client, name, experiment, record, champion)
        text = f"not registered as {name}: {verdict.reason}"
        if verdict.is_better:
            version = _version_of(client, name, models[0], run_id, verdict.reason)
            client.set_registered_model_alias(name, CHAMPION, version)
            text = f"{name} version {version} is the {CHAMPION}: {verdict.reason}"
    client.set_tag(run_id, tag, text[:MAX_TAG])
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


def _judge_stored(
    client: Any, name: str, experiment: str, record: Sequence[Path], champion: Any
) -> Verdict:
    """Compare with the champion's record in MLflow."""
    try:
        challenger = read_answers(*record)
    except InputError as error:
        return Verdict(is_better=False, reason=str(error))
    if champion is None:
        reason = f"the first one: validation accuracy {challenger.accuracy:.2%}"
        return Verdict(is_better=True, reason=reason)
    against = f"against version {champion.version}: "
    with tempfile.TemporaryDirectory() as folder:
        try:
            answers = read_answers(*_download_record(client, champion.run_id, folder))
        except InputError as error:
            return Verdict(
                is_better=False,
                reason=f"{against}the {CHAMPION}'s record of its validation cannot be read "
                f"({error}); move the alias by hand",
            )
    before = client.search_runs(
        [experiment], filter_string=f"tags.`{VERDICT_TAG}/{name}` LIKE '%{against}not better%'"
    )
    verdict = judge(challenger, answers, len(before))
    return Verdict(is_better=verdict.is_better, reason=against + verdict.reason)


def _download_record(client: Any, run_id: str, folder: str) -> tuple[Path, Path]:
    exceptions = import_mlflow().exceptions
    try:
        stored = {file.path for file in client.list_artifacts(run_id, RECORD)}
    except exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise InputError("its run is gone") from None
    paths = [f"{RECORD}/{file}" for file in (RUN_FILE, ANSWERS_FILE)]
    if lost := [path for path in paths if path not in stored]:
        raise InputError(f"there is no {', no '.join(lost)}")
    facts, answers = (Path(client.download_artifacts(run_id, path, folder)) for path in paths)
    return facts, answers


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
