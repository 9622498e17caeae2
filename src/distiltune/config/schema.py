"""The tables of `params.yaml`: keys, types and ranges."""

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", strict=True)
Device = Literal["auto", "cuda", "cpu"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Truncation = Literal["head", "head_tail"]
BatchOrder = Literal["random", "bucketed"]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Strings = tuple[Annotated[str, Field(min_length=1)], ...]


def _check_share(value: int | float) -> int | float:
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError("a share must lie between 0 and 1; write a count without a point")
    if value < 1 and isinstance(value, int):
        raise ValueError("a count must be at least 1")
    return value


Share = Annotated[int | float, AfterValidator(_check_share)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImdbRow:
    """The archive of the Large Movie Review Dataset: mirrors in order, checksums."""

    urls: Annotated[Strings, Field(min_length=1)]
    sha256: Sha256
    table_sha256: Sha256 | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SampleRow:
    """Reviews that the project generates itself."""

    num_reviews: Annotated[int, Field(ge=10, le=1_000_000)]
    seed: Seed


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CsvRow:
    """The user's own files, read one after the other."""

    paths: Strings
    text_column: Annotated[str, Field(min_length=1)]
    label_column: Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Datasets:
    imdb: ImdbRow
    sample: SampleRow
    csv: CsvRow


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SplitRow:
    """Sizes of the splits, as counts (the rest is left over) or shares of all reviews."""

    train: Share
    validation: Share
    test: Share
    shuffle: bool
    stratify: bool
    seed: Seed
    drop_duplicates: bool


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Splits:
    imdb: SplitRow
    sample: SplitRow
    csv: SplitRow


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CheckpointRow:
    """Pretrained weights: a hub repository at a revision, or a local folder."""

    repository: Annotated[str, Field(min_length=1)] | None = None
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None
    folder: Annotated[str, Field(min_length=1)] | None = None
    sha256: Sha256


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TokenizerRow:
    """`checkpoint` takes the checkpoint's; `word` and `bpe` are trained on the data."""

    type: Literal["checkpoint", "word", "bpe"]
    max_length: Annotated[int, Field(ge=3)]
    vocabulary_size: Annotated[int, Field(ge=10)] | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CheckpointArchitecture:
    type: Literal["checkpoint"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistilBertArchitecture:
    type: Literal["distilbert"]
    hidden_size: Count
    num_layers: Count
    num_heads: Count
    feed_forward_size: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]
    initializer_range: Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LstmArchitecture:
    type: Literal["lstm"]
    embedding_size: Count
    hidden_size: Count
    num_layers: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]


Architecture = Annotated[
    CheckpointArchitecture | DistilBertArchitecture | LstmArchitecture,
    Field(discriminator="type"),
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingRow:
    """How a model is trained where `train` says `auto`.

    `learning_rate_multiplier` scales the optimizer row's rate, which is meant for
    fine-tuning: a model from scratch needs more.
    """

    batch_size: Count
    epochs: Count
    learning_rate_multiplier: Annotated[float, Field(gt=0)]
    batch_order: BatchOrder


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelRow:
    checkpoint: CheckpointRow | None
    tokenizer: TokenizerRow
    architecture: Architecture
    training: TrainingRow


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TokenizeTable:
    max_length: Annotated[int, Field(ge=3)] | Literal["auto"]
    truncation: Truncation


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerRow:
    """What every optimizer variant may set; `algorithm` defaults to the row's name.

    `warmup_share` is a share of all steps, in place of `warmup_steps`. Without
    `decay_bias_and_norm` weight decay leaves out what is no matrix (biases, norms).
    `layer_decay` multiplies the rate once for each layer below the head (Clark et al.
    2020, ELECTRA). `max_gradient_norm` beats `train.max_gradient_norm`. `ema_decay` or
    `swa_start_share` evaluate and keep averaged weights: an exponential average of all
    steps (Polyak and Juditsky 1992), or the mean of those after a share of the training
    (Izmailov et al. 2018).
    """

    algorithm: str
    learning_rate: Annotated[float, Field(gt=0, le=10)]
    schedule: Literal["constant", "linear", "cosine", "one_cycle"]
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup_share: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    decay_bias_and_norm: bool = True
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_gradient_norm: Annotated[float, Field(gt=0)] | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    swa_start_share: Annotated[float, Field(ge=0, lt=1)] | None = None

    def num_warmup_steps(self, num_steps: int) -> int:
        """Of that many steps."""
        if self.warmup_share is None:
            return self.warmup_steps
        return math.ceil(self.warmup_share * num_steps)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdamRow(OptimizerRow):
    algorithm: Literal["adam", "adamw", "adamw_8bit", "nadam", "radam", "schedulefree_adamw"]
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    epsilon: Annotated[float, Field(gt=0)] = 1e-8


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SgdRow(OptimizerRow):
    algorithm: Literal["sgd"]
    momentum: Beta = 0.9
    nesterov: bool = True


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdafactorRow(OptimizerRow):
    """`learning_rate` is relative: an update is that share of a weight's root mean square."""

    algorithm: Literal["adafactor"]
    beta2_decay: Annotated[float, Field(ge=-1, lt=0)] = -0.8
    clipping_threshold: Annotated[float, Field(gt=0)] = 1.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LionRow(OptimizerRow):
    algorithm: Literal["lion"]
    betas: tuple[Beta, Beta] = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MuonRow(OptimizerRow):
    """`betas` and `epsilon` are those of AdamW, which has what is no hidden matrix."""

    algorithm: Literal["muon"]
    momentum: Beta = 0.95
    nesterov: bool = True
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    epsilon: Annotated[float, Field(gt=0)] = 1e-8


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SoapRow(OptimizerRow):
    algorithm: Literal["soap"]
    betas: tuple[Beta, Beta] = (0.95, 0.95)
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    precondition_frequency: Count = 10


AnyOptimizerRow = Annotated[
    AdamRow | SgdRow | AdafactorRow | LionRow | MuonRow | SoapRow,
    Field(discriminator="algorithm"),
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainTable:
    batch_size: Count | Literal["auto"]
    epochs: Count | Literal["auto"]
    gradient_accumulation_steps: Count
    processes: Count
    max_gradient_norm: Annotated[float, Field(gt=0)] | None
    keep: Literal["last", "best"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    r_drop: Annotated[float, Field(ge=0)]
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"]
    max_tokens_per_pass: Count | Literal["auto"]
    stop_below: (
        Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] | None
    )
    log_every_steps: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdaptTable:
    """Task-adaptive pretraining (Gururangan et al. 2020); without epochs there is none."""

    epochs: Annotated[int, Field(ge=0)]
    unlabelled: bool
    masked_share: Annotated[float, Field(gt=0, lt=1)]
    batch_size: Count
    seed: Seed
    optimizer: AnyOptimizerRow
    log_every_steps: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SpeedTable:
    """Ways to compute the same faster; each can be turned off.

    The fields are explained in `params.yaml`. All hold for `engine: native`, and for
    DistilBERT, but for `fused_optimizer`, which holds for all; `evaluate` heeds those that
    hold for inference, whatever the engine was.
    """

    padding_free: bool = True
    first_token_only: bool = True
    fused_projection: bool = True
    fast_attention: bool = True
    fast_dropout: bool = True
    prepacked_weights: bool = True
    fused_optimizer: bool = True
    cuda_graphs: bool = True
    compile: bool = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ResumeTable:
    """How often a training's state is saved; both `None` do not."""

    every_seconds: Annotated[float, Field(gt=0)] | None
    every_steps: Annotated[int, Field(ge=1)] | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrackingTable:
    experiment: Annotated[str, Field(min_length=1)]
    log_model: bool
    system_metrics: bool


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RegistryTable:
    # No more than what a URI `models:/NAME@champion` can hold.
    model: Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=200)] | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Params:
    """The whole of `params.yaml`, validated."""

    dataset: Literal["imdb", "sample", "csv"]
    model: str
    optimizer: str
    engine: Literal["native", "trainer"]
    seed: Seed
    device: Device
    precision: Precision
    datasets: Datasets
    splits: Splits
    models: dict[str, ModelRow]
    tokenize: TokenizeTable
    adapt: AdaptTable
    optimizers: dict[str, AnyOptimizerRow]
    train: TrainTable
    speed: SpeedTable
    resume: ResumeTable
    tracking: TrackingTable
    registry: RegistryTable
