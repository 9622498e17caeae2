"""Reads and validates `params.yaml`; every mistake gets one line."""

import difflib
import json
import re
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml

from distiltune import InputError
from distiltune.config.schema import (
    DistilBertArchitecture,
    ModelRow,
    OptimizerRow,
    Params,
    SgdRow,
)

MAX_VALUES = 100_000  # in the file, its aliases written out
SWITCHES = {"dataset": "datasets", "model": "models", "optimizer": "optimizers"}


class Yaml12Loader(yaml.SafeLoader):
    """Resolves plain scalars as YAML 1.2 does, so that `3e-05` is a number and `on` a string.

    DVC reads and writes `params.yaml` so; PyYAML's own loaders follow YAML 1.1.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (so PyYAML declares it)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        text = node.value.lstrip("+")
        return int(text, 0) if re.match("0[xo]", text) else int(text)


# The core schema: https://yaml.org/spec/1.2.2/#1032-tag-resolution
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
):
    Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
Yaml12Loader.add_constructor("tag:yaml.org,2002:int", Yaml12Loader.construct_integer)


def load_params(path: Path) -> Params:
    """Parse and validate all of `params.yaml`.

    Raises:
        InputError: the file cannot be read, or holds mistakes; one line for each.
    """
    try:
        loader = Yaml12Loader(path.read_text(encoding="utf-8"))
        raw = loader.get_single_data()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run from the project's root") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"{path}: line {line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply") from None
    if (num_values := _num_values(raw, {})) > MAX_VALUES:
        raise InputError(
            f"{path}: its aliases stand for {num_values:.0e} values; at most {MAX_VALUES} are taken"
        )
    if not isinstance(raw, dict):
        raise InputError(f"{path}: must hold keys and values, not {type(raw).__name__}")
    optimizers = raw.get("optimizers")
    if isinstance(optimizers, dict):
        raw["optimizers"] = {
            name: {"algorithm": name, **row} if isinstance(row, dict) else row
            for name, row in optimizers.items()
        }
    try:
        # Through JSON, because strict validation takes no mapping for a dataclass otherwise.
        params = pydantic.TypeAdapter(Params).validate_json(json.dumps(raw))
    except pydantic.ValidationError as error:
        raise InputError("\n".join(map(_printable, _lines(error, raw, path)))) from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: holds what is no text, number or list: {error}") from None
    mistakes = list(_contradictions(params))
    if mistakes:
        raise InputError("\n".join(_printable(f"{path}: {mistake}") for mistake in mistakes))
    return params


def _num_values(value: Any, known: dict[int, int]) -> int:
    """How many values there are when each alias is written out."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        items = value.values() if isinstance(value, dict) else value
        known[id(value)] = 0  # an alias of what it stands in itself
        known[id(value)] = 1 + sum(_num_values(item, known) for item in items)
    return known[id(value)]


def _lines(error: pydantic.ValidationError, raw: Any, path: Path) -> list[str]:
    """One line for each key that is wrong, whatever number of complaints it got."""
    problems: dict[str, list[str]] = {}
    for problem in error.errors():
        keys, value = [], raw
        for part in problem["loc"]:
            in_table = isinstance(value, dict) and part in value
            if in_table or (isinstance(value, list) and isinstance(part, int)):
                keys.append(str(part))
                value = value[part]
            elif problem["type"] == "missing" and part == problem["loc"][-1]:
                keys.append(str(part))
        name = ".".join(keys)
        if problem["type"] == "unexpected_keyword_argument":
            text = f"unknown key{_nearest_key(keys, _legal_keys(problem['loc'][:-1]))}"
        elif problem["type"] == "missing":
            text = "is missing"
        elif problem["type"] == "union_tag_not_found":
            text = "needs an `algorithm`" if keys[0] == "adapt" else "needs a `type`"
        elif problem["type"] == "union_tag_invalid" and keys[0] in ("adapt", "optimizers"):
            name += ".algorithm"
            text = f"{value['algorithm']!r}: should be one of {problem['ctx']['expected_tags']}"
            if keys[0] == "optimizers":
                text += "; a row with a name of its own says, for example, `algorithm: adamw`"
        else:
            message = problem["msg"].removeprefix("Value error, ").replace("Input should", "should")
            text = f"{_short(value)}: {message}"
        problems.setdefault(name, []).append(text)
    # A key that is misspelt is missing too, which need not be said.
    for name, (first, *_) in list(problems.items()):
        if meant := re.fullmatch(r"unknown key \(did you mean (\w+)\?\)", first):
            right = ".".join([*name.split(".")[:-1], meant[1]])
            if problems.get(right) == ["is missing"]:
                del problems[right]
    lines = []
    for name, texts in problems.items():
        # A union complains once for each of its members: the value is said once.
        first, *rest = dict.fromkeys(texts)
        more = "".join(f", or {text.rsplit(': ', 1)[-1]}" for text in rest)
        lines.append(f"{path}: {name}: {first}{more}")
    return lines


def _printable(line: str) -> str:
    """Without what would end the line, or move the cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _nearest(name: str, legal: list[str]) -> str:
    near = difflib.get_close_matches(name, legal, n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else f" (allowed: {', '.join(legal)})"


def _nearest_key(keys: list[str], legal: list[str]) -> str:
    """The same, for a key that may stand in the wrong table."""
    elsewhere = [
        f"{table.name}.{keys[-1]}"
        for table in fields(Params)
        if keys[-1] in _field_names(typing.get_type_hints(Params)[table.name])
    ]
    return f" (did you mean {elsewhere[0]}?)" if elsewhere else _nearest(keys[-1], legal)


def _field_names(found: Any) -> list[str]:
    return [field.name for field in fields(found)] if is_dataclass(found) else []


def _legal_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the table at a location in the file may hold."""
    found: Any = Params
    for part in location:
        while typing.get_origin(found) is Annotated:
            found = typing.get_args(found)[0]
        if typing.get_origin(found) is dict:
            found = typing.get_args(found)[1]
        elif hasattr(found, "__dataclass_fields__"):
            found = typing.get_type_hints(found, include_extras=True)[str(part)]
        else:  # a union: the location names the member by its class or its `type`
            members = [member for member in typing.get_args(found) if member is not type(None)]
            tagged = [m for m in members if part in (m.__name__, *_type_tags(m))]
            found = tagged[0] if tagged else members[0]
            if not tagged:
                found = typing.get_type_hints(found, include_extras=True)[str(part)]
    members = [m for m in typing.get_args(found) if m is not type(None)] or [found]
    return [field.name for field in fields(members[0])]


def _type_tags(member: Any) -> tuple[Any, ...]:
    hints = typing.get_type_hints(member)
    return typing.get_args(hints.get("type", hints.get("algorithm")))


def _contradictions(params: Params) -> typing.Iterator[str]:
    """Mistakes that no single value shows."""
    for switch, table_name in SWITCHES.items():
        chosen, table = getattr(params, switch), getattr(params, table_name)
        if isinstance(table, dict) and chosen not in table:
            yield f"{switch}: {chosen!r} is no row of {table_name}{_nearest(chosen, list(table))}"
    for name, row in params.models.items():
        yield from _model_contradictions(f"models.{name}", row)
    for name, variant in params.optimizers.items():
        yield from _optimizer_contradictions(f"optimizers.{name}", variant)
    yield from _optimizer_contradictions("adapt.optimizer", params.adapt.optimizer)
    active = params.optimizers.get(params.optimizer)
    if params.engine == "trainer" and active and _averages(active):
        yield f"optimizers.{params.optimizer}.{_averages(active)}: needs engine: native"
    if params.engine == "trainer" and params.train.r_drop:
        yield f"train.r_drop: {params.train.r_drop:g} needs engine: native; 0.0 turns it off"
    chosen_model = params.models.get(params.model)
    num_processes = params.train.processes
    if params.engine == "trainer" and num_processes > 1:
        yield f"train.processes: {num_processes} needs engine: native; the Trainer gets 1"
    if chosen_model:
        chosen_size = params.train.batch_size
        batch_size = chosen_model.training.batch_size if chosen_size == "auto" else chosen_size
        if num_processes > batch_size:
            yield f"train.processes: {num_processes} is more than a batch has reviews, {batch_size}"
    dropout = params.train.attention_dropout
    if params.train.r_drop and chosen_model and _drops_nothing(chosen_model, dropout):
        yield (
            f"train.r_drop: {params.train.r_drop:g} with model: {params.model}, whose two passes "
            f"are the same without dropout; set models.{params.model}.architecture.dropout above 0"
        )
    if params.adapt.epochs and params.engine == "trainer":
        yield f"adapt.epochs: {params.adapt.epochs} needs engine: native; 0 turns adaptation off"
    if params.adapt.epochs and chosen_model and chosen_model.architecture.type == "lstm":
        yield (
            f"adapt.epochs: {params.adapt.epochs} with model: {params.model}, an LSTM, which reads "
            "from left to right and cannot look at both sides of a hidden word; set 0"
        )
    if dropout != "auto" and chosen_model and chosen_model.architecture.type == "lstm":
        yield (
            f"train.attention_dropout: {dropout} with model: {params.model}, an LSTM, which has "
            "no attention; set auto"
        )
    for name in ("imdb", "sample", "csv"):
        split = getattr(params.splits, name)
        sizes = (split.train, split.validation, split.test)
        where = f"splits.{name}: train, validation and test"
        if len({type(size) for size in sizes}) > 1:
            yield f"{where} must be all counts (35000) or all shares (0.7), not {sizes}"
        elif isinstance(split.train, float) and sum(sizes) > 1 + 1e-9:
            yield f"{where} are {sum(sizes):g} together, which is more than 1"
        elif split.stratify and not split.shuffle:
            yield f"splits.{name}.stratify: true needs splits.{name}.shuffle: true"
        elif name == params.dataset == "sample" and isinstance(split.train, int):
            if sum(sizes) > params.datasets.sample.num_reviews:
                yield (
                    f"{where} are {sum(sizes)} together, more than datasets.sample.num_reviews "
                    f"= {params.datasets.sample.num_reviews}"
                )
    for url in params.datasets.imdb.urls:
        if not re.match(r"(https?|file)://", url):
            yield f"datasets.imdb.urls: {url!r} must begin with https://, http:// or file://"
    columns = params.datasets.csv
    if columns.text_column == columns.label_column:
        yield f"datasets.csv.label_column: {columns.label_column!r} is the text column too"
    if params.dataset == "csv" and not params.datasets.csv.paths:
        yield "datasets.csv.paths: is empty; name your file: -S 'datasets.csv.paths=[reviews.csv]'"
    for file in params.datasets.csv.paths:
        if ".." in Path(file).parts:
            yield f"datasets.csv.paths: {file!r} leaves the project; give its absolute path"
        if not file.endswith((".csv", ".csv.gz", ".parquet")):
            yield f"datasets.csv.paths: {file!r} must end in .csv, .csv.gz or .parquet"


def _drops_nothing(row: ModelRow, attention_dropout: float | str) -> bool:
    """Whether a model from scratch has no dropout; a checkpoint's own is not known here."""
    if row.architecture.type == "checkpoint" or row.architecture.dropout > 0:
        return False
    return row.architecture.type == "lstm" or attention_dropout in ("auto", 0.0)


def _averages(row: OptimizerRow) -> str:
    """The key that asks for averaged weights, if one does."""
    names = ("ema_decay", "swa_start_share")
    return next((name for name in names if getattr(row, name) is not None), "")


def _optimizer_contradictions(where: str, row: OptimizerRow) -> typing.Iterator[str]:
    if row.warmup_steps and row.warmup_share is not None:
        yield f"{where}.warmup_share: goes without warmup_steps, which is {row.warmup_steps}"
    if row.ema_decay is not None and row.swa_start_share is not None:
        yield f"{where}.swa_start_share: goes without ema_decay, which is {row.ema_decay:g}"
    if row.algorithm == "schedulefree_adamw":
        if row.schedule != "constant":
            yield f"{where}.schedule: {row.schedule!r} must be 'constant' for schedule-free AdamW"
        if _averages(row):
            yield f"{where}.{_averages(row)}: schedule-free AdamW averages already; leave it out"
    if isinstance(row, SgdRow) and row.nesterov and not row.momentum:
        yield f"{where}.nesterov: true needs a momentum above 0"


def _model_contradictions(where: str, row: ModelRow) -> typing.Iterator[str]:
    checkpoint, tokenizer, architecture = row.checkpoint, row.tokenizer, row.architecture
    if checkpoint is None and architecture.type == "checkpoint":
        yield f"{where}.architecture.type: 'checkpoint' needs {where}.checkpoint, which is null"
    if checkpoint is not None and architecture.type != "checkpoint":
        yield f"{where}.architecture.type: must be 'checkpoint' where {where}.checkpoint is given"
    if (checkpoint is None) == (tokenizer.type == "checkpoint"):
        yield f"{where}.tokenizer.type: {tokenizer.type!r} does not go with {where}.checkpoint"
    if (tokenizer.vocabulary_size is None) != (tokenizer.type == "checkpoint"):
        yield f"{where}.tokenizer.vocabulary_size: goes with type word or bpe, and must there"
    if checkpoint and not checkpoint.folder and not (checkpoint.repository and checkpoint.revision):
        yield f"{where}.checkpoint: needs repository and revision, or folder"
    if (
        isinstance(architecture, DistilBertArchitecture)
        and architecture.hidden_size % architecture.num_heads
    ):
        yield (
            f"{where}.architecture.hidden_size: {architecture.hidden_size} must be a multiple "
            f"of num_heads, {architecture.num_heads}"
        )
