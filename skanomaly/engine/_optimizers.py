"""Variants of Adam with little work outside of the kernels.

Small networks make steps of a tenth of a millisecond, of which those of torch's classes
take a good part, mostly for the choice between their ways to compute the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Adam(torch.optim.AdamW):
    """Adam, with decoupled weight decay, in one kernel for all parameters.

    Parameters
    ----------
    params : iterable of torch.nn.Parameter
        The parameters to train.
    lr : float
        Learning rate.
    betas : pair of float
        Decay of the running means of gradients and of squared gradients, in [0, 1).
        With 0 as the first one there is no buffer of the first mean.
    eps : float
        Added to the square root of the mean of squared gradients.
    weight_decay : float
        Share of the weights, times `lr`, by which a step shrinks them.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step on the parameters that have a gradient."""
        for group in self.param_groups:
            by_dtype: dict[torch.dtype, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_dtype.setdefault(p.dtype, []).append(p)
            for trained in by_dtype.values():
                self._step_together(trained, group)

    def _step_together(self, trained: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        new = [p for p in trained if p not in self.state]
        if new:
            self._begin(new, has_mean=beta1 > 0)
        states = [self.state[p] for p in trained]
        grads: list[Any] = [p.grad for p in trained]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            trained,
            grads,
            # The kernel would overwrite this mean by the gradient.
            [state["exp_avg"] for state in states] if beta1 else grads,
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _begin(self, parameters: list[Tensor], has_mean: bool) -> None:
        """Make the states of parameters."""
        names = ("exp_avg", "exp_avg_sq") if has_mean else ("exp_avg_sq",)
        for p in parameters:
            n_steps = torch.zeros((), dtype=torch.float32, device=p.device)
            zeros = {name: torch.zeros_like(p) for name in names}
            self.state[p] = {"step": n_steps, **zeros}
