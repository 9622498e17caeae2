"""Encodes the splits into token files, with the checkpoint's tokenizer or a trained one."""

from pathlib import Path

from distiltune.artifacts import SPLITS, new_folder
from distiltune.config import TokenizeConfig, load
from distiltune.encoding import Encoder, encode_split, prepare_tokenizer
from distiltune.runtime import run_stage

TABLES, CHECKPOINT = Path("data/splits"), Path("data/checkpoint")


def main() -> None:
    config = load(TokenizeConfig)
    with new_folder(Path("data/tokenizer")) as folder:
        tokenizer = prepare_tokenizer(
            config.tokenizer, config.max_length, CHECKPOINT, TABLES / "train.parquet", folder
        )
    encoder = Encoder(tokenizer, config.max_length, config.tokenize.truncation)
    with new_folder(Path("data/tokens")) as folder:
        for name in SPLITS:
            counts = encode_split(
                encoder, TABLES / f"{name}.parquet", folder / f"{name}.safetensors"
            )
            print(name, *(f"{key}={value:,}" for key, value in counts.items()), flush=True)


if __name__ == "__main__":
    run_stage(main)
