"""Integrated gradients: what each position of an input contributes to an output.

Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks": from a baseline to
the input, the gradients are summed up along the straight line. By the fundamental theorem of
calculus the sums of all positions add up to the output's difference between the two ends, which
the paper calls completeness, and which is checked here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Completeness within 1 % of the difference; where that is all but nothing, within this much.
RELATIVE_TOLERANCE, LEAST_TOLERANCE = 0.01, 0.01
FIRST_STEPS = 8
MAX_STEPS = 256


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What each position of an input contributes to an output, in the output's unit.

    values: (length,) float64 on the CPU.
    """

    values: torch.Tensor
    output: float  # at the input
    baseline_output: float
    num_steps: int
    change: float  # the most that a value moved when the steps were doubled last

    @property
    def difference(self) -> float:
        return self.output - self.baseline_output

    @property
    def gap(self) -> float:
        """By how much the values do not add up to the difference."""
        return abs(float(self.values.sum()) - self.difference)

    @property
    def tolerance(self) -> float:
        return max(RELATIVE_TOLERANCE * abs(self.difference), LEAST_TOLERANCE)

    @property
    def holds(self) -> bool:
        """Whether the values add up, and none would move any more, within the tolerance.

        A sum can be right by chance where its parts are not; so both are asked for.
        """
        return self.gap <= self.tolerance and self.change <= self.tolerance


def integrate_gradients(
    compute: Callable[[torch.Tensor], torch.Tensor],
    baseline: torch.Tensor,
    end: torch.Tensor,
    *,
    max_steps: int = MAX_STEPS,
    max_points: int = 64,
    report: Callable[[Attribution], None] = lambda found: None,
) -> Attribution:
    """Attribute an output to the positions of an input.

    The steps are doubled from `FIRST_STEPS` until `Attribution.holds`. The points of fewer
    steps are among those of more, so that nothing is computed twice.

    Args:
        compute: from points (num_points, length, size) to outputs (num_points,), each of its
            point alone, with gradients.
        baseline: (length, size), where the line begins.
        end: (length, size), the input.
        max_steps: the most steps, from `FIRST_STEPS`; who reads the result asks whether it holds.
        max_points: the most points that `compute` gets at once, which bounds the memory.
        report: is told what was found before the steps are doubled.
    """
    assert max_steps >= FIRST_STEPS
    direction = end - baseline

    def evaluate(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs (num_places,), and what each position adds per unit of the line, by place."""
        outputs, slopes = [], []
        for part in places.to(end).split(max_points):
            points = (baseline + part[:, None, None] * direction).requires_grad_()
            with torch.enable_grad():
                computed = compute(points)
                (gradients,) = torch.autograd.grad(computed.sum(), points)
            outputs.append(computed.detach().double().cpu())
            slopes.append((gradients.double() * direction.double()).sum(-1).cpu())
        return torch.cat(outputs), torch.cat(slopes)

    num_steps = FIRST_STEPS
    outputs, slopes = evaluate(quadrature(num_steps)[0])  # slopes: (num_steps + 1, length)
    while True:
        values = quadrature(num_steps)[1] @ slopes
        fewer = quadrature(num_steps // 2)[1] @ slopes[::2]
        found = Attribution(
            values=values,
            output=float(outputs[-1]),
            baseline_output=float(outputs[0]),
            num_steps=num_steps,
            change=float((values - fewer).abs().max()),
        )
        if found.holds or not math.isfinite(found.gap) or 2 * num_steps > max_steps:
            return found
        report(found)
        num_steps *= 2
        between = evaluate(quadrature(num_steps)[0][1::2])[1]
        merged = torch.empty(num_steps + 1, slopes.shape[1], dtype=slopes.dtype)
        merged[::2], merged[1::2] = slopes, between
        slopes = merged


def quadrature(num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Places from 0 to 1 and their weights, both (num_steps + 1,) float64.

    Clenshaw and Curtis 1960, "A method for numerical integration on an automatic computer":
    exact for polynomials up to the degree `num_steps`. Both ends are among the places, which
    are denser there: near the baseline, where layer norms turn quickly, and near the input.
    """
    k = torch.arange(num_steps + 1, dtype=torch.float64)
    j = torch.arange(1, num_steps // 2 + 1, dtype=torch.float64)
    factors = torch.where(2 * j == num_steps, 1.0, 2.0) / (4 * j**2 - 1)
    waves = torch.cos(2 * math.pi * k[:, None] * j / num_steps)
    weights = (1 - waves @ factors) / num_steps
    weights[[0, -1]] /= 2
    return (1 - torch.cos(math.pi * k / num_steps)) / 2, weights
