"""The cases of `benchmarks.throughput`: what is timed, each in a process of its own."""

import dataclasses
import functools
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer

from benchmarks import inputs, peers
from distiltune.batching import Tokens
from distiltune.config import SpeedTable, TrainConfig, load
from distiltune.encoding import Encoder
from distiltune.inference import freeze, predict_logits
from distiltune.models import DEFAULT_SPEED
from distiltune.runtime import Runtime, choose_runtime
from distiltune.training.costs import peak_memory_bytes
from distiltune.training.native import train_native

SWITCHES_ON_CPU = (
    "padding_free", "first_token_only", "fused_projection", "fast_attention", "fast_dropout",
    "fused_optimizer",
)  # fmt: skip
SWITCHES_ON_CUDA = (
    "padding_free", "first_token_only", "fused_projection", "fast_attention", "fused_optimizer",
    "cuda_graphs",
)  # fmt: skip
TRAINER_GROUP = 50  # batches that the Trainer sorts by length at a time
# Of half the length, and of one and a half; none of 512, for the Trainer's benefit.
NUM_GROUPED_BATCHES = 2
NUM_EVALUATED = 128
NUM_TOKENS_OF_SPLIT = 2_700_000  # the test split of IMDb


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What all cases share."""

    device: str
    tokens: Path | None
    num_reviews: int
    num_notebook_reviews: int
    num_epochs: int  # the first is a warm-up
    num_notebook_epochs: int  # of the padded loops in fp32; before a single one, two reviews
    batch_size: int
    reviews: Path | None
    tokenizer: Path | None
    num_texts: int

    def runtime(self, precision: str = "auto") -> Runtime:
        return choose_runtime(self.device, precision)

    def some_tokens(self, num_reviews: int) -> Tokens:
        if self.tokens is None:
            return inputs.made_up_tokens(num_reviews)
        return inputs.some_of(self.tokens, num_reviews)


Result = dict[str, Any]
Case = Callable[[Settings], Result]


def train_cases(*, on_cuda: bool) -> dict[str, Case]:
    """The training loops by name: peers, the native engine, and it without each switch."""
    cases: dict[str, Case] = {
        "notebook": notebook,
        "trainer": functools.partial(trainer, at_its_best=False),
        "trainer_best": functools.partial(trainer, at_its_best=True),
        "native": native,
    }
    if not on_cuda:
        cases["native_once"] = native  # with as few batches as those below, to compare them with
    cases["native_fp32"] = functools.partial(native, precision="fp32")
    cases["native_attention_dropout_0"] = functools.partial(native, attention_dropout=0.0)
    for switch in SWITCHES_ON_CUDA if on_cuda else SWITCHES_ON_CPU:
        cases[f"native_without_{switch}"] = functools.partial(native, speed=without(switch))
    if on_cuda:
        cases["trainer_best_compiled"] = functools.partial(trainer, at_its_best=True, compiled=True)
        cases["native_compiled"] = functools.partial(native, speed=SpeedTable(compile=True))
    return cases


def without(switch: str) -> SpeedTable:
    return dataclasses.replace(DEFAULT_SPEED, **{switch: False})


def notebook(settings: Settings) -> Result:
    runtime = settings.runtime("fp32")
    tokens = settings.some_tokens(settings.num_notebook_reviews)
    model = inputs.new_distilbert().to(runtime.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=peers.LEARNING_RATE)

    def run(tokens: Tokens) -> float:
        return peers.notebook_epoch(model, optimizer, tokens, settings.batch_size, runtime)

    if settings.num_notebook_epochs == 1:
        run(inputs.made_up_tokens(2))
    return training_result([run(tokens) for _ in range(settings.num_notebook_epochs)], tokens)


def trainer(settings: Settings, *, at_its_best: bool, compiled: bool = False) -> Result:
    runtime = settings.runtime("auto" if at_its_best else "fp32")
    are_grouped = at_its_best and settings.num_reviews < TRAINER_GROUP * settings.batch_size
    num_epochs = settings.num_epochs if at_its_best else settings.num_notebook_epochs
    if not at_its_best:
        tokens = settings.some_tokens(settings.num_notebook_reviews)
    elif are_grouped:
        group = settings.some_tokens(TRAINER_GROUP * settings.batch_size)
        tokens = inputs.grouped_by_length(group, settings.batch_size, NUM_GROUPED_BATCHES)
    else:
        tokens = settings.some_tokens(settings.num_reviews)
    model = inputs.new_distilbert().to(runtime.device)

    def run(tokens: Tokens, num_epochs: int) -> list[float]:
        return peers.trainer_epochs(
            model, tokens, settings.batch_size, runtime, num_epochs,
            at_its_best=at_its_best, are_grouped=are_grouped, compiled=compiled,
        )  # fmt: skip

    if num_epochs == 1:
        run(inputs.made_up_tokens(2), 1)
    return training_result(run(tokens, num_epochs), tokens)


def native(
    settings: Settings,
    *,
    precision: str = "auto",
    attention_dropout: float = 0.1,
    speed: SpeedTable = DEFAULT_SPEED,
) -> Result:
    """The product's own loop, as the stage `train` calls it."""
    runtime = settings.runtime(precision)
    tokens = settings.some_tokens(settings.num_reviews)
    model = inputs.new_distilbert(attention_dropout=attention_dropout).to(runtime.device)
    config = load(TrainConfig)
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(
            config.train, epochs=settings.num_epochs, batch_size=settings.batch_size
        ),
        speed=speed,
    )
    history = train_native(config, model, tokens, inputs.made_up_tokens(2), runtime, [])
    return training_result([record.train_seconds for record in history.epochs], tokens)


def training_result(epochs: list[float], tokens: Tokens) -> Result:
    lengths = tokens.lengths
    return {
        "seconds": epochs[1:] or epochs,
        "num_examples": tokens.num_reviews,
        "num_tokens": len(tokens.ids),
        "matrix_flops": inputs.matrix_flops(len(tokens.ids), int(lengths.square().sum())),
    }


def evaluate_notebook(settings: Settings) -> Result:
    runtime = settings.runtime("fp32")
    tokens = settings.some_tokens(settings.num_notebook_reviews)
    model = inputs.new_distilbert().to(runtime.device)
    seconds = [
        peers.notebook_accuracy(model, some, settings.batch_size, runtime)
        for some in (tokens, tokens, tokens)  # the first is a warm-up, as of `evaluate_native`
    ]
    return {"seconds": seconds[1:], "num_examples": tokens.num_reviews}


def evaluate_native(settings: Settings, *, prepacked_weights: bool = True) -> Result:
    runtime = settings.runtime()
    tokens = settings.some_tokens(max(settings.num_reviews, NUM_EVALUATED))
    speed = SpeedTable(prepacked_weights=prepacked_weights)
    model = inputs.new_distilbert().to(runtime.device)
    # As for a whole split, of which these reviews are a part; so it is not timed with them.
    model = freeze(model, runtime, speed, NUM_TOKENS_OF_SPLIT)
    predict_logits(model, tokens, runtime, speed)
    started = time.perf_counter()
    predict_logits(model, tokens, runtime, speed)  # its result is on the host, so it has waited
    return {"seconds": [time.perf_counter() - started], "num_examples": tokens.num_reviews}


def matrix_peak(settings: Settings) -> Result:
    return {"flops_per_second": peers.matrix_peak(settings.runtime())}


def texts_and_tokenizer(settings: Settings) -> tuple[list[str], Tokenizer]:
    if settings.reviews is None:
        return inputs.made_up_reviews(settings.num_texts), inputs.made_up_tokenizer()
    texts = pq.read_table(settings.reviews, columns=["text"])["text"].to_pylist()
    assert settings.tokenizer is not None
    return (
        texts[: settings.num_texts],
        Tokenizer.from_file(str(settings.tokenizer / "tokenizer.json")),
    )


def tokenize_notebook(settings: Settings) -> Result:
    """One call over all the texts, padded and cut, as the notebooks have it."""
    from transformers import PreTrainedTokenizerFast

    texts, tokenizer = texts_and_tokenizer(settings)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=inputs.SPECIAL[0], model_max_length=inputs.MAX_LENGTH
    )
    before = peak_memory()
    started = time.perf_counter()
    encoded = fast(texts, truncation=True, padding=True)
    seconds = time.perf_counter() - started
    assert len(encoded["input_ids"]) == len(texts)
    return {"seconds": [seconds], "num_examples": len(texts), "memory_before": before}


def tokenize_native(settings: Settings) -> Result:
    """As the stage `tokenize` does it, from the table of reviews to the token file."""
    import pyarrow as pa

    from distiltune.artifacts import reviews_schema, write_reviews
    from distiltune.encoding import encode_split

    texts, tokenizer = texts_and_tokenizer(settings)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "reviews.parquet"
        schema = reviews_schema(inputs.made_up_tokens(2).info)
        columns = [pa.array(texts), pa.array(np.zeros(len(texts), dtype=np.int32))]
        write_reviews(table, pa.table(columns, schema=schema).to_batches(4096), schema)
        num_texts = len(texts)
        del texts, columns
        before = peak_memory()
        started = time.perf_counter()
        encode_split(
            Encoder(tokenizer, inputs.MAX_LENGTH, "head"), table, Path(folder) / "t.safetensors"
        )
        seconds = time.perf_counter() - started
    return {"seconds": [seconds], "num_examples": num_texts, "memory_before": before}


OTHER_CASES: dict[str, Case] = {
    "evaluate_notebook": evaluate_notebook,
    "evaluate_native": evaluate_native,
    "evaluate_without_prepacked_weights": functools.partial(
        evaluate_native, prepacked_weights=False
    ),
    "tokenize_notebook": tokenize_notebook,
    "tokenize_native": tokenize_native,
}


def peak_memory() -> int:
    """The most bytes that this process has held: of the GPU where it has used one."""
    return peak_memory_bytes(torch.device("cuda" if torch.cuda.is_initialized() else "cpu"))


def run_case(name: str, settings: Settings) -> Result:
    """Measure one case in a fresh process.

    Raises:
        RuntimeError: the case failed; its traceback has been printed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.peers", "distiltune.training.native"])
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(there, name, settings))
    process.start()
    there.close()
    try:
        result: Result | None = here.recv()
    except EOFError:
        result = None
    process.join()
    if result is None:
        raise RuntimeError(f"the case {name} failed (exit status {process.exitcode})")
    return result


def _child(connection: Connection, name: str, settings: Settings) -> None:
    try:
        on_cuda = settings.runtime().device.type == "cuda"
        cases = {**train_cases(on_cuda=on_cuda), **OTHER_CASES, "matrix_peak": matrix_peak}
        result = cases[name](settings)
    except Exception:  # whatever a case does wrong is shown, and `run_case` raises by the status
        traceback.print_exc()
        sys.exit(1)
    connection.send({**result, "peak_memory": peak_memory()})
