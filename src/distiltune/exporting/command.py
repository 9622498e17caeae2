"""One call of `distiltune export`: a trained model in, a folder for other programs out."""

import argparse
import importlib.metadata
import shutil
import sys
from dataclasses import asdict
from typing import Any

from distiltune.artifacts import (
    WEIGHTS_FILE,
    new_folder,
    replaceable_folder,
    sha256_of,
    write_json,
)
from distiltune.console import write
from distiltune.exporting import classify
from distiltune.exporting.agreement import Agreement, check_agreement, compute_reference
from distiltune.exporting.formats import (
    BATCH,
    FORMATS,
    INPUTS,
    LENGTH,
    ONNX_PACKAGES,
    OUTPUT,
    write_model,
)
from distiltune.exporting.readme import readme
from distiltune.model_source import MODEL, model_folder
from distiltune.runtime import project_root
from distiltune.trained import TOKENIZER_FILE, TrainedModel, load_trained

FACTS_FILE, README_FILE, EXAMPLE_FILE = "export.json", "README.md", "classify.py"
# As they are in the model's folder.
COPIED = ("config.json", TOKENIZER_FILE, "tokenizer_config.json")
PROBE = "a"  # any text of one token or more


def run_export(arguments: argparse.Namespace) -> None:
    """`distiltune export`.

    Raises:
        InputError: the place, the model or a package is not what it must be, or the exported
            model disagrees with the model.
    """
    folder = replaceable_folder(arguments.output, FACTS_FILE, "an export")
    kind = FORMATS[arguments.format]
    kind.check()
    root = project_root()
    name = arguments.model or str(MODEL)
    with model_folder(arguments.model, root) as source, new_folder(folder) as partial:
        trained = load_trained(source)
        reference = compute_reference(trained, root)
        _say(f"{name}: exporting a {trained.model.config.model_type} model to {kind.file}")
        write_model(kind, trained.model, trained.encoder.max_length, partial / kind.file)
        for file in COPIED:
            shutil.copyfile(source / file, partial / file)
        shutil.copyfile(classify.__file__, partial / EXAMPLE_FILE)
        facts = _facts(trained, arguments.format, name)
        write_json(partial / FACTS_FILE, facts)
        _say(f"comparing it with transformers on {len(reference.texts)} {reference.kind}")
        agreement = check_agreement(partial, reference)
        write_json(partial / FACTS_FILE, {**facts, "agreement": asdict(agreement)})
        (partial / README_FILE).write_text(readme(facts, agreement), encoding="utf-8")
        megabytes = (partial / kind.file).stat().st_size / 1e6
    write(f"{arguments.output}: {kind.file}, {megabytes:,.1f} MB; {_sentence(agreement)}")


def _facts(trained: TrainedModel, name_of_format: str, source: str) -> dict[str, Any]:
    """What a program needs to know, and what the model was made of."""
    encoder, kind = trained.encoder, FORMATS[name_of_format]
    axes = {"dtype": "int64", "shape": [BATCH, LENGTH]}
    num_last = _num_last(trained)
    if encoder.truncation == "head_tail":
        num_last = encoder.max_length - encoder.head
    packages = ["distiltune", "torch", "transformers", "tokenizers"]
    packages += ONNX_PACKAGES if name_of_format == "onnx" else ()
    return {
        "format": name_of_format,
        "model": kind.file,
        "opset": kind.opset,
        "inputs": [{"name": name, **axes} for name in INPUTS],
        "outputs": [
            {"name": OUTPUT, "dtype": "float32", "shape": [BATCH, len(trained.label_names)]}
        ],
        "labels": list(trained.label_names),
        "max_length": encoder.max_length,
        # Of a longer text, so many of its first and of its last tokens are read.
        "truncation": {"first": encoder.max_length - num_last, "last": num_last},
        "padding_id": trained.model.config.pad_token_id or 0,
        # Stands for a text of which the tokenizer keeps nothing.
        "empty_text_id": int(encoder.nothing[0]),
        "architecture": trained.model.config.model_type,
        "source": source,
        "weights_sha256": sha256_of(trained.folder / WEIGHTS_FILE),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def _num_last(trained: TrainedModel) -> int:
    """How many special tokens the tokenizer puts behind a text."""
    mask = trained.encoder.tokenizer.encode(PROBE).special_tokens_mask
    return len(mask) - max(i + 1 for i, is_special in enumerate(mask) if not is_special)


def _sentence(agreement: Agreement) -> str:
    return (
        f"logits of {agreement.num_texts} {agreement.texts} ({agreement.shortest_tokens} to "
        f"{agreement.longest_tokens} tokens) differ from those of transformers by "
        f"{agreement.largest_difference:.1e} at most"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
