"""The optimiser of the weight matrices."""

import torch


def orthogonalise(matrices: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Bring all singular values of each matrix near 1, by Newton-Schulz iterations; [count, rows, columns] float32.

    Muon's quintic polynomial (https://kellerjordan.github.io/posts/muon). In float32, unlike `torch.optim.Muon`,
    as bfloat16 products take twenty times as long on a CPU without instructions for them.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.mT, iterations).mT
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


class Muon:
    """Momentum whose steps are orthogonal matrices: it learns this task in less than half of AdamW's steps."""

    def __init__(self, weights: list[torch.nn.Parameter], momentum: float = 0.95) -> None:
        """`weights`: matrices [rows, columns]; `momentum` in [0, 1)."""

        self.weights = weights
        self.momentum = momentum
        self.averages = [torch.zeros_like(weight) for weight in weights]

    def step(self, learning_rate: float) -> None:
        """Take one step with Nesterov momentum, whose root mean square is 0.2 x `learning_rate` as AdamW's is."""

        for average, weight in zip(self.averages, self.weights, strict=True):
            average.lerp_(weight.grad, 1.0 - self.momentum)
        for shape in {weight.shape for weight in self.weights}:
            alike = [index for index, weight in enumerate(self.weights) if weight.shape == shape]
            updates = torch.stack([self.weights[i].grad.lerp(self.averages[i], self.momentum) for i in alike])
            scale = 0.2 * max(shape) ** 0.5
            for index, update in zip(alike, orthogonalise(updates), strict=True):
                self.weights[index].data.sub_(update, alpha=learning_rate * scale)
