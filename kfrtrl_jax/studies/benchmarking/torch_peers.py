"""KF-RTRL and UORO for a tanh network in eager PyTorch, written directly from the papers.

They compute the same as `learner.step` with immediate="estimated", the loss |h - y|^2 / 2 and plain
gradient descent. Names and shapes are those of `estimators.kf_rtrl` and `estimators.uoro`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

# The papers' guard against 0 / 0.
_EPS = 1e-12


class KfRtrl(NamedTuple):
    """h: [B, n], u: [B, m], A: [B, n, n], and the weights [m, n] with m = inputs + n + 1."""

    weights: torch.Tensor
    h: torch.Tensor
    u: torch.Tensor
    A: torch.Tensor


class Uoro(NamedTuple):
    """h: [B, n], s~: [B, n], theta~: [B, m, n], and the weights [m, n]."""

    weights: torch.Tensor
    h: torch.Tensor
    s: torch.Tensor
    theta: torch.Tensor


def start(name: str, weights: torch.Tensor, batch: int) -> Any:
    """The state before the first step of "kf_rtrl" or "uoro"."""
    m, n = weights.shape
    zeros = lambda *shape: weights.new_zeros(batch, *shape)  # noqa: E731
    if name == "kf_rtrl":
        return KfRtrl(weights, zeros(n), zeros(m), zeros(n, n))
    return Uoro(weights, zeros(n), zeros(n), zeros(m, n))


def signs(name: str, batch: int, n: int, like: torch.Tensor) -> torch.Tensor:
    """Random signs for a step: [2, B] for "kf_rtrl", [B, n] for "uoro"."""
    shape = (2, batch) if name == "kf_rtrl" else (batch, n)
    return torch.randint(0, 2, shape, device=like.device).to(like.dtype) * 2 - 1


def kf_rtrl_step(
    state: KfRtrl, x: torch.Tensor, y: torch.Tensor, c: torch.Tensor, rate: float
) -> KfRtrl:
    """A step of state, push, pull and update: x [B, inputs], targets y [B, n], signs c [2, B]."""
    weights, h, u, A = state
    a = torch.cat([x, h, torch.ones_like(h[:, :1])], dim=1)
    new = torch.tanh(a @ weights)
    slope = 1 - new**2
    recurrent = weights[x.shape[1] : -1]
    jacobian = slope[:, :, None] * recurrent.T
    carried = torch.bmm(jacobian, A)
    D = torch.diag_embed(slope)
    p1 = torch.sqrt((_norm(carried) + _EPS) / (_norm(u) + _EPS))
    p2 = torch.sqrt((_norm(D) + _EPS) / (_norm(a) + _EPS))
    u = (c[0] * p1)[:, None] * u + (c[1] * p2)[:, None] * a
    A = (c[0] / p1)[:, None, None] * carried + (c[1] / p2)[:, None, None] * D
    error = (new - y) / len(x)
    gradient = torch.einsum("bm,bg->mg", u, torch.einsum("bn,bng->bg", error, A))
    return KfRtrl(weights - rate * gradient, new, u, A)


def uoro_step(state: Uoro, x: torch.Tensor, y: torch.Tensor, nu: torch.Tensor, rate: float) -> Uoro:
    """A step of state, push, pull and update: x [B, inputs], targets y [B, n], signs nu [B, n]."""
    weights, h, s, theta = state
    a = torch.cat([x, h, torch.ones_like(h[:, :1])], dim=1)
    new = torch.tanh(a @ weights)
    slope = 1 - new**2
    recurrent = weights[x.shape[1] : -1]
    carried = slope * (s @ recurrent)
    immediate = a[:, :, None] * (nu * slope)[:, None, :]
    rho0 = torch.sqrt((_norm(theta) + _EPS) / (_norm(carried) + _EPS))
    rho1 = torch.sqrt((_norm(immediate) + _EPS) / (_norm(nu) + _EPS))
    s = rho0[:, None] * carried + rho1[:, None] * nu
    theta = theta / rho0[:, None, None] + immediate / rho1[:, None, None]
    error = (new - y) / len(x)
    gradient = torch.einsum("b,bmn->mn", (error * s).sum(dim=1), theta)
    return Uoro(weights - rate * gradient, new, s, theta)


STEPS: dict[str, Any] = {"kf_rtrl": kf_rtrl_step, "uoro": uoro_step}


@torch.no_grad()
def train(name: str, state: Any, xs: torch.Tensor, ys: torch.Tensor, rate: float) -> Any:
    """Makes a step for every x of xs [T, B, inputs], with targets ys [T, B, n]."""
    step = STEPS[name]
    for x, y in zip(xs, ys):
        state = step(state, x, y, signs(name, len(x), y.shape[1], y), rate)
    return state


def _norm(x: torch.Tensor) -> torch.Tensor:
    """The norm of each lane, [B]."""
    return x.flatten(start_dim=1).norm(dim=1)
