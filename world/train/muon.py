"""Muon: momentum whose matrices are made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 4


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest matrices [..., rows, columns] with singular values near 1, by Newton and Schulz in bfloat16."""
    a, b, c = COEFFICIENTS
    x = (matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Orthogonal momentum for the parameters named in `inside`, matrices and filters; Adam for all others.

    `rate` is about the share of a fresh weight's size that one step changes; Adam's rate is `rate * adam`.
    """

    def __init__(self, net: nn.Module, rate: float, inside: Iterable[str], adam: float = 0.1, momentum: float = 0.95):
        chosen = set(inside)
        groups = []
        for name, parameter in net.named_parameters():
            if parameter.requires_grad:
                groups.append({"params": [parameter], "muon": name in chosen})
        super().__init__(groups, {"lr": rate, "adam": adam, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        alike: dict[tuple[torch.Size, float], list[tuple[Tensor, Tensor]]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if group["muon"]:
                    momentum = self.momentum(parameter.grad, self.state[parameter], group)
                    alike.setdefault((momentum.shape, group["lr"]), []).append((parameter, momentum))
                else:
                    self.by_adam(parameter, parameter.grad, self.state[parameter], group)
        for ((rows, columns), rate), found in alike.items():
            size = max(1.0, rows / columns) ** 0.5  # entries of 1 / sqrt(columns) RMS, as fresh weights have
            steps = orthogonal(torch.stack([momentum for _, momentum in found]))
            for (parameter, _), step in zip(found, steps, strict=True):
                parameter.sub_(step.view(parameter.shape), alpha=rate * size)

    @staticmethod
    def momentum(grad: Tensor, state: dict, group: dict) -> Tensor:
        """Nesterov's, as a matrix."""
        if "average" not in state:
            state["average"] = torch.zeros_like(grad)
        average = state["average"].lerp_(grad, 1 - group["momentum"])
        return grad.lerp(average, group["momentum"]).flatten(1)

    def by_adam(self, parameter: Tensor, grad: Tensor, state: dict, group: dict) -> None:
        if "step" not in state:
            state["step"] = torch.zeros(())
            state["first"], state["second"] = torch.zeros_like(grad), torch.zeros_like(grad)
        state["step"] += 1
        t = state["step"].item()
        first = state["first"].lerp_(grad, 0.1)
        second = state["second"].lerp_(grad.square(), 0.01)
        bound = (second / (1 - 0.99**t)).sqrt_().add_(1e-8)
        parameter.addcdiv_(first, bound, value=-group["lr"] * group["adam"] / (1 - 0.9**t))
