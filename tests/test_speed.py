"""The ways to compute the same faster: dropout, divided batches, recorded passes, switches."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distiltune import InputError
from distiltune import runtime as runtime_module
from distiltune.batching import Batch, Tokens, add_filler, divide, gather
from distiltune.config import TrainConfig
from distiltune.models import compute_logits
from distiltune.models.dropout import drop
from distiltune.optimizers import build_optimizer
from distiltune.runtime import Runtime, choose_runtime
from distiltune.training import graphs
from distiltune.training import objective as objective_module
from distiltune.training import passes as passes_module
from distiltune.training.graphs import RecordedPasses
from distiltune.training.objective import Classification
from distiltune.training.passes import Passes
from tests.conftest import Project
from tests.test_training import CPU, assert_same_weights, change, fit, new_model, read

ONE_BATCH = [torch.arange(16)]


@pytest.fixture
def prepared_config(prepared: Project) -> TrainConfig:
    config, _, _ = read(prepared)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1))


def gradients_of(model: Any) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_fast_dropout_is_dropout(dtype: torch.dtype, probability: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1001, dtype=dtype, requires_grad=True)
    dropped = drop(x, probability)
    share = (dropped == 0).double().mean().item()
    # Six standard errors of a share of a million.
    assert share == pytest.approx(probability, abs=6e-3 * (probability * (1 - probability)) ** 0.5)
    kept = dropped[dropped != 0].double()
    assert kept.unique().tolist() == pytest.approx([1 / (1 - probability)], rel=1e-2)
    dropped.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, dropped)
    # Neighbours are independent: four share a draw of 64 bits.
    zeros = (dropped == 0).double().flatten()
    for distance in (1, 2, 3, 4):
        both = (zeros[:-distance] * zeros[distance:]).mean().item()
        assert both == pytest.approx(probability**2, abs=3e-3)


def test_fast_dropout_follows_the_seed() -> None:
    x = torch.ones(10_000)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(drop(x, 0.3))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(drop(x, 0.0), x)


def test_attention_with_dropout_has_the_gradient_of_its_mask() -> None:
    """Against finite differences, the same random mask each time."""
    from distiltune.models.attention import Layout, attend_one_by_one

    lengths = [3, 5]
    layout = Layout(torch.tensor([0, 3, 8]), lengths)
    torch.manual_seed(0)
    q, k, v = (torch.randn(8, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        mixed: torch.Tensor = attend_one_by_one(q, k, v, layout, layout, 0.4)
        return mixed

    assert torch.autograd.gradcheck(attend, (q, k, v))
    with torch.no_grad():
        exact = attend_one_by_one(q, k, v, layout, layout, 0.0)
        draws = [attend_one_by_one(q, k, v, layout, layout, 0.4) for _ in range(1000)]
    assert not torch.allclose(draws[0], exact)
    torch.testing.assert_close(torch.stack(draws).mean(0), exact, atol=0.2, rtol=0)


@pytest.mark.parametrize(
    "switch",
    ["padding_free", "first_token_only", "fused_projection", "fast_attention", "fused_optimizer"],
)
def test_each_switch_leaves_the_weights_what_they_are(
    prepared: Project, prepared_config: TrainConfig, switch: str
) -> None:
    """The other switches have tests of their own: `tiny` has no dropout, the CPU no graphs."""
    fast, _ = fit(prepared, prepared_config)
    speed = dataclasses.replace(prepared_config.speed, **{switch: False})
    plain, _ = fit(prepared, dataclasses.replace(prepared_config, speed=speed))
    assert_same_weights(fast, plain)


def test_fused_and_plain_optimizers_take_the_same_steps(prepared_config: TrainConfig) -> None:
    weights = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        row = prepared_config.optimizer_row
        optimizer = build_optimizer(model, row, 0.01, fused=fused)
        assert optimizer.defaults["fused"] is (True if fused else None)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.arange(10.0).view(2, 5)).square().sum().backward()
            optimizer.step()
        weights.append(model.weight.detach())
    torch.testing.assert_close(*weights)


def passes_of(config: TrainConfig, model: Any, train: Tokens, runtime: Runtime = CPU) -> Passes:
    objective = Classification(config, model, train, train, runtime)
    return Passes(config, model, train, runtime, objective)


def test_a_batch_is_divided_by_tokens() -> None:
    rows = torch.tensor([7, 3, 9, 1, 4])
    lengths = torch.tensor([10, 20, 50, 5, 5])
    parts = divide(rows, lengths, 30)
    assert [part.tolist() for part in parts] == [[7, 3], [9], [1, 4]]
    assert [part.tolist() for part in divide(rows, lengths, 1000)] == [rows.tolist()]


@pytest.mark.parametrize("padding_free", [True, False])
def test_divided_passes_have_the_gradient_of_the_whole(
    prepared: Project, prepared_config: TrainConfig, padding_free: bool
) -> None:
    _, train, _ = read(prepared)
    speed = dataclasses.replace(prepared_config.speed, padding_free=padding_free)
    config = dataclasses.replace(prepared_config, speed=speed)
    found = []
    for max_tokens in ("auto", 40):
        model = new_model(prepared, config, train)
        passes = passes_of(change(config, max_tokens_per_pass=max_tokens), model, train)
        sums = passes.run(ONE_BATCH)
        found.append((sums, gradients_of(model)))
    (whole, gradients), (divided, same) = found
    torch.testing.assert_close(divided, whole)
    for one, other in zip(gradients, same, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def fail_above(
    monkeypatch: pytest.MonkeyPatch, limit: int, error: Callable[[], RuntimeError]
) -> list[int]:
    """Let the model run out of memory above a number of tokens; returns what it was given."""
    sizes: list[int] = []

    def compute(model: Any, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(ids))
        if len(ids) > limit:
            raise error()
        return compute_logits(model, ids, *rest)

    monkeypatch.setattr(objective_module, "compute_logits", compute)
    return sizes


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_divides_the_batches(
    prepared: Project,
    prepared_config: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: Callable[[], RuntimeError],
) -> None:
    _, train, _ = read(prepared)
    model = new_model(prepared, prepared_config, train)
    passes = passes_of(prepared_config, model, train)
    whole = passes.run(ONE_BATCH)
    expected = gradients_of(model)
    model.zero_grad()
    num_tokens = int(train.lengths[:16].sum())
    sizes = fail_above(monkeypatch, num_tokens // 3, error)
    torch.testing.assert_close(passes.run(ONE_BATCH), whole)
    for found, wanted in zip(gradients_of(model), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)
    assert sizes[0] == num_tokens
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and all("with the same gradient" in line for line in lines)
    # What was learnt holds for the next step.
    sizes.clear()
    model.zero_grad()
    passes.run(ONE_BATCH)
    assert max(sizes) <= num_tokens // 3


def test_out_of_memory_drops_the_recordings_first(
    prepared: Project,
    prepared_config: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    _, train, _ = read(prepared)
    model = new_model(prepared, prepared_config, train)
    passes = passes_of(prepared_config, model, train)
    whole = passes.run(ONE_BATCH)
    model.zero_grad()

    class NoRoom:
        def run(self, batch: Batch, compute: Any) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    passes.recorded = NoRoom()  # type: ignore[assignment]
    torch.testing.assert_close(passes.run(ONE_BATCH), whole)
    assert passes.recorded is None and passes.max_tokens is None
    assert "going on without CUDA graphs" in capfd.readouterr().err


def test_no_memory_for_one_review_is_an_error(
    prepared: Project, prepared_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, train, _ = read(prepared)
    passes = passes_of(prepared_config, new_model(prepared, prepared_config, train), train)
    fail_above(monkeypatch, 0, lambda: torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(InputError, match=r"out of memory with one review of \d+ tokens"):
        passes.run(ONE_BATCH)


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    prepared: Project, prepared_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, train, _ = read(prepared)
    passes = passes_of(prepared_config, new_model(prepared, prepared_config, train), train)
    fail_above(monkeypatch, 0, lambda: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        passes.run(ONE_BATCH)


def test_compiling_without_a_compiler_is_an_error(
    prepared: Project, prepared_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, train, _ = read(prepared)
    monkeypatch.setenv("CXX", "no-such-compiler -x")
    speed = dataclasses.replace(prepared_config.speed, compile=True)
    config = dataclasses.replace(prepared_config, speed=speed)
    with pytest.raises(InputError, match=r"speed\.compile: .* no 'no-such-compiler -x' here"):
        passes_of(config, new_model(prepared, config, train), train)


def test_scarce_memory_divides_the_batches_on_the_cpu(
    prepared: Project,
    prepared_config: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    _, train, _ = read(prepared)
    model = new_model(prepared, prepared_config, train)
    plenty = passes_of(prepared_config, model, train)
    assert plenty.max_tokens is None and not capfd.readouterr().err
    state = torch.get_rng_state()
    monkeypatch.setattr(passes_module, "available_memory", lambda: 2_000_000)
    scarce = passes_of(prepared_config, model, train)
    assert scarce.max_tokens is not None
    assert 1 <= scarce.max_tokens < 16 * train.max_length
    assert "MB of memory are free" in capfd.readouterr().err
    assert torch.equal(torch.get_rng_state(), state)  # the estimate changes no later draw


@pytest.mark.parametrize("place", [0, 1], ids=["second version", "first version"])
def test_memory_of_a_container_counts_without_its_file_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    _, limit, used, cache = runtime_module.CONTAINER_MEMORY[place]
    monkeypatch.setattr(runtime_module, "CONTAINER_MEMORY", ((tmp_path, limit, used, cache),))
    free = runtime_module.available_memory()
    (tmp_path / limit).write_text("10000000\n")
    (tmp_path / used).write_text("9000000\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\n{cache} 500000\nactive_file 7\n")
    assert runtime_module.available_memory() == 1_500_000
    (tmp_path / limit).write_text("max\n")
    assert runtime_module.available_memory() == pytest.approx(free, rel=0.5)


def test_a_filler_changes_no_logit(prepared: Project, prepared_config: TrainConfig) -> None:
    _, train, _ = read(prepared)
    model = new_model(prepared, prepared_config, train).eval()
    batch = gather(train, torch.arange(7))
    filled = add_filler(batch, 8, train.max_length)
    assert len(filled.ids) % 8 == 0 and 1 <= len(filled.ids) - len(batch.ids) <= 8
    assert int(filled.offsets[-1]) == len(filled.ids)
    lengths = filled.offsets.diff().tolist()  # the CPU needs the real ones
    with torch.no_grad():
        expected = compute_logits(model, batch.ids, batch.offsets, batch.lengths)
        found = compute_logits(model, filled.ids, filled.offsets, lengths)
    torch.testing.assert_close(found[:7], expected, atol=1e-6, rtol=1e-5)
    assert len(found) == 8


class Recorder:
    """Stands in for CUDA's recording: a replay computes again, into the same memory."""

    def __init__(self) -> None:
        self.num_recordings = 0

    def record(self, compute: Callable[[], torch.Tensor]) -> Any:
        self.num_recordings += 1
        sums = compute()

        def replay() -> None:
            sums.copy_(compute())

        return replay, sums


def recorded_passes(model: Any, train: Any, recorder: Any) -> RecordedPasses:
    recorded = RecordedPasses(model, train.max_length, CPU.device)
    recorded.recorder = recorder
    return recorded


def compute_with(passes: Passes) -> Callable[[Batch], torch.Tensor]:
    """The pass of a full batch; where it is filled, the CPU needs the real lengths."""

    def compute(batch: Batch) -> torch.Tensor:
        lengths = batch.offsets.diff().tolist()
        return passes._compute(dataclasses.replace(batch, lengths=lengths), 16)

    return compute


def test_recorded_passes_give_each_batch_its_gradient(
    prepared: Project, prepared_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, train, _ = read(prepared)
    model = new_model(prepared, prepared_config, train)
    monkeypatch.setattr(graphs, "TOKENS_MULTIPLE", 16)
    recorder = Recorder()
    recorded = recorded_passes(model, train, recorder)
    eager = passes_of(prepared_config, model, train)
    sizes = set()
    for epoch in range(2):
        for rows in torch.arange(160).split(16):
            batch = gather(train, rows)
            sizes.add(-(-(len(batch.ids) + 1) // 16))
            model.zero_grad(set_to_none=True)
            expected_sums, expected = eager.run([rows]), gradients_of(model)
            model.zero_grad(set_to_none=True)
            sums = recorded.run(batch, compute_with(eager))
            torch.testing.assert_close(sums, expected_sums)
            assert len(expected) == len(list(model.parameters()))
            for found, wanted in zip(gradients_of(model), expected, strict=True):
                torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)
        assert recorder.num_recordings == len(sizes), epoch
    assert len(sizes) > 1


class NoRecorder:
    def __init__(self, error: RuntimeError) -> None:
        self.error = error

    def record(self, compute: Callable[[], torch.Tensor]) -> Any:
        compute()
        raise self.error


def test_without_memory_for_a_recording_the_pass_runs_as_it_is(
    prepared: Project, prepared_config: TrainConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    _, train, _ = read(prepared)
    model = new_model(prepared, prepared_config, train)
    passes = passes_of(prepared_config, model, train)
    sums, expected = passes.run(ONE_BATCH), gradients_of(model)
    recorded = recorded_passes(model, train, NoRecorder(torch.OutOfMemoryError("CUDA out")))
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        found = recorded.run(gather(train, ONE_BATCH[0]), compute_with(passes))
        torch.testing.assert_close(found, sums)
        for one, other in zip(gradients_of(model), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert capfd.readouterr().err.count("CUDA graphs: no memory for more than 0 sizes") == 1


def test_what_cannot_be_recorded_is_an_error_that_names_the_way_out(
    prepared: Project, prepared_config: TrainConfig
) -> None:
    _, train, _ = read(prepared)
    model = new_model(prepared, prepared_config, train)
    passes = passes_of(prepared_config, model, train)
    error = RuntimeError("operation not permitted when stream is capturing")
    recorded = recorded_passes(model, train, NoRecorder(error))
    with pytest.raises(InputError, match=r"not permitted .* set -S speed.cuda_graphs=false"):
        recorded.run(gather(train, ONE_BATCH[0]), compute_with(passes))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_recorded_passes_on_cuda_have_the_gradients_of_plain_ones(
    prepared: Project, prepared_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By turns over several sizes, and over the steps of an optimizer."""
    _, train, _ = read(prepared)
    monkeypatch.setattr(graphs, "TOKENS_MULTIPLE", 16)
    runtime = choose_runtime("cuda", "bf16")
    trained = {}
    for cuda_graphs in (True, False):
        speed = dataclasses.replace(prepared_config.speed, cuda_graphs=cuda_graphs)
        config = dataclasses.replace(prepared_config, speed=speed)
        model = new_model(prepared, config, train).to(runtime.device)
        passes = passes_of(config, model, train, runtime)
        optimizer = build_optimizer(model, config.optimizer_row, 1e-3)
        gradients = []
        for rows in torch.arange(160).split(16) * 2:
            passes.run([rows])
            gradients.append(gradients_of(model))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        trained[cuda_graphs] = gradients, [p.detach().clone() for p in model.parameters()]
        if cuda_graphs:
            assert passes.recorded is not None and len(passes.recorded.recordings) > 1
    (found, weights), (expected, plain_weights) = trained[True], trained[False]
    for one, other in zip(found[0], expected[0], strict=True):
        if other.norm() > 1e-4:
            assert (one - other).norm() <= 0.02 * other.norm()
    for one, other in zip(weights, plain_weights, strict=True):
        torch.testing.assert_close(one, other, atol=5e-3, rtol=5e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_failed_recording_on_cuda_is_an_error_that_names_the_way_out(
    prepared: Project, prepared_config: TrainConfig
) -> None:
    _, train, _ = read(prepared)
    runtime = choose_runtime("cuda", "bf16")
    model = new_model(prepared, prepared_config, train).to(runtime.device)
    passes = passes_of(prepared_config, model, train, runtime)
    recorded = RecordedPasses(model, train.max_length, runtime.device)

    def compute(batch: Batch) -> torch.Tensor:
        sums = passes._compute(batch, 16)
        sums.tolist()  # waits for the device, which a recording must not
        return sums

    with pytest.raises(InputError, match=r"set -S speed\.cuda_graphs=false"):
        recorded.run(gather(train, ONE_BATCH[0]), compute)
