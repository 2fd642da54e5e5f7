"""How much of the devices' arithmetic training makes use of (MFU, of PaLM, arXiv 2204.02311, appendix B)."""

from __future__ import annotations

from dataclasses import dataclass

from dapo_openrlhf.bench.result import Result

FLOPS_PER_PARAMETER = 6
"""Of a token that is trained: two for the forward pass, four for the backward pass; attention itself is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What is needed to say it."""

    parameters: int
    """Of the model."""
    flops: float
    """Floating-point operations per second that one device can do in the training's data type."""

    def mfu(self, result: Result) -> float:
        """Share of what all devices could do, engines' included, that the trained response tokens need, 0 to 1."""
        needed = FLOPS_PER_PARAMETER * self.parameters * result.trained_tokens_per_second
        return needed / (result.devices * self.flops)

    def cell(self, result: Result) -> str:
        """The share as a table has it; a share above 1 cannot be, and is not printed."""
        share = self.mfu(result)
        return f"{share:.2g}" if share < 1e-3 else f"{share:.1%}" if share <= 1 else "peak?"

    @property
    def definition(self) -> str:
        """What the column means."""
        return (
            f"MFU: {FLOPS_PER_PARAMETER} x {self.parameters:,} parameters x trained tok/s / (all devices x "
            f"{self.flops / 1e12:g} TFLOP/s). Prompts, generation, recomputed log-probs, further epochs and attention are not "
            "counted, so devices do more than this. peak?: more than 100 %, so --peak-tflops is too low."
        )
