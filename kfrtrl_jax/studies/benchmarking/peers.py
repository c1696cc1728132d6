"""The same training step in other packages: state, push, pull and update of a tanh network.

A step reads an input x and a target y for every lane, contracts the gradient of |h - y|^2 / (2 B) with
the updated influence (the papers' form, immediate="estimated") and takes a step of gradient descent.
With a segment length above 1, ours makes the same updates, and pushes the influence once a segment.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kfrtrl_jax._src import xla
from kfrtrl_jax._src.base import Batch
from kfrtrl_jax.base import Array
from kfrtrl_jax.cells import vanilla
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.estimators import ESTIMATORS
from kfrtrl_jax.learning import Learner, LearnerState, make_learner
from kfrtrl_jax.readouts import Readout
from kfrtrl_jax.studies.benchmarking import floors, timing
from kfrtrl_jax.studies.benchmarking.timing import Floor, Measurement, Work
from kfrtrl_jax.training import made_with

INPUTS, RATE = 32, 1e-3


class Peer(NamedTuple):
    """A comparison of our estimator with another package's.

    Attributes:
      package: "torch" or "braintrace".
      estimator: our name for it.
      n: units.
      batch: lanes.
      target: the largest ratio ours / theirs that counts as reached.
      product: whether J A alone takes the place of our step, which shows the best possible ratio.
      segment_length: K of ours; the other package pushes its influence at every step.
    """

    package: str
    estimator: str
    n: int
    batch: int
    target: float | None
    product: bool = False
    segment_length: int = 1

    @property
    def name(self) -> str:
        """Estimator and package."""
        ours = "J A alone" if self.product else self.estimator
        ours += f" K {self.segment_length}" if self.segment_length > 1 else ""
        return f"vanilla {ours} / {self.package}" + (" kf_rtrl" if self.product else "")


PEERS_SUITE = (
    Peer("torch", "kf_rtrl", 128, 16, 1 / 4),
    Peer("torch", "kf_rtrl", 256, 32, 1 / 3),
    Peer("torch", "kf_rtrl", 128, 16, None, product=True),
    Peer("torch", "kf_rtrl", 256, 32, None, product=True),
    Peer("torch", "kf_rtrl", 128, 16, 1 / 4, segment_length=8),
    Peer("torch", "kf_rtrl", 256, 32, 1 / 3, segment_length=8),
    Peer("torch", "uoro", 128, 16, 1 / 4),
    Peer("torch", "uoro", 256, 32, 1 / 3),
    Peer("torch", "uoro", 128, 16, 1 / 4, segment_length=8),
    Peer("torch", "uoro", 256, 32, 1 / 3, segment_length=8),
    Peer("braintrace", "uoro", 128, 1, 1 / 2),
    Peer("braintrace", "uoro", 256, 1, 1 / 2),
    Peer("braintrace", "uoro", 128, 16, 1 / 2),
    Peer("braintrace", "snap", 128, 16, 1 / 2),
    Peer("braintrace", "snap", 256, 32, 1 / 2),
    Peer("braintrace", "e_prop", 128, 16, 1 / 2),
    Peer("braintrace", "e_prop", 256, 32, 1 / 2),
    Peer("braintrace", "pp_prop", 128, 16, 1 / 2),
    Peer("braintrace", "pp_prop", 256, 32, 1 / 2),
)


def require(packages: set[str]) -> None:
    """Refuses packages that are not installed.

    Raises:
      ConfigError: naming the packages to install.
    """
    missing = []
    for package in sorted(packages):
        try:
            importlib.import_module(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise ConfigError(
            f"suite peers needs {' and '.join(missing)}: pip install 'kfrtrl_jax[peers]', or "
            f"choose other rows by --rows=REGEX"
        )


def measure_peer(peer: Peer, *, suite: str, rounds: int = 9, steps: int = 24) -> Measurement:
    """Measures our training steps against another package's.

    Raises:
      ConfigError: if the package is missing, or PyTorch has no GPU where JAX has one.
    """
    require({peer.package})
    weights, xs, ys = problem(peer.n, peer.batch, steps)
    run, words = (_torch if peer.package == "torch" else _braintrace)(peer, weights, xs, ys)
    floor = Floor(words, Work(run, steps))
    if peer.product:
        work = floors.product(peer.batch, peer.n, peer.n, [peer.n], weights.dtype).work
    else:
        work = _ours(peer, weights, xs, ys)
    return timing.compare(
        work,
        floor,
        suite=suite,
        name=peer.name,
        n=peer.n,
        batch=peer.batch,
        target=peer.target,
        rounds=rounds,
    )


def problem(n: int, batch: int, steps: int) -> tuple[Array, Array, Array]:
    """Weights [m, n], inputs [T, B, INPUTS] and targets [T, B, n]."""
    keys = jax.random.split(jax.random.key(0), 3)
    rows = INPUTS + n + 1
    return (
        jax.random.normal(keys[0], (rows, n)) * rows**-0.5,
        jax.random.normal(keys[1], (steps, batch, INPUTS)),
        jnp.tanh(jax.random.normal(keys[2], (steps, batch, n))),
    )


def our_learner(
    estimator: str, weights: Array, batch: int, segment_length: int = 1
) -> tuple[Learner, LearnerState]:
    """Our learner for the problem, and its state before the first step."""
    rows, n = weights.shape
    one_step = {"immediate": "estimated"}
    lengths: dict[str, Any] = (
        one_step if segment_length == 1 else {"segment_length": segment_length, "update_every": 1}
    )
    learner = make_learner(
        vanilla(input_size=rows - n - 1, hidden_size=n),
        Readout(lambda key: {}, lambda params, h: h),
        ESTIMATORS[estimator](),
        optax.sgd(RATE),
        batch_size=batch,
        example_input=jnp.zeros(rows - n - 1, weights.dtype),
        **lengths,
        loss=lambda h, y: jnp.sum((h - y) ** 2) / 2,
    )
    start = learner.init(jax.random.key(0))
    # A copy, as the caller's weights must not be donated.
    parameters = {**start.parameters, "cell": {"weights": jnp.array(weights)}}
    return learner, start._replace(parameters=parameters)


def segments(xs: Array, ys: Array, length: int = 1) -> Batch:
    """The sequence as segments of K time steps, [T / K, K, B, ...]; no lane starts anew."""
    reset = jnp.zeros(xs.shape[:2], bool)
    return jax.tree.map(
        lambda leaf: leaf.reshape(-1, length, *leaf.shape[1:]), Batch(xs, ys, reset)
    )


def _ours(peer: Peer, weights: Array, xs: Array, ys: Array) -> Work:
    """Training on the whole sequence, each time it is run."""
    length = peer.segment_length
    learner, start = our_learner(peer.estimator, weights, xs.shape[1], length)
    train = xla.jit(
        lambda state, xs, ys: jax.lax.scan(learner.step, state, segments(xs, ys, length)),
        donate_argnums=0,
    )
    return timing.resumed(lambda state: train(state, xs, ys), start, len(xs))


def _torch(peer: Peer, weights: Array, xs: Array, ys: Array) -> tuple[Any, str]:
    import numpy as np
    import torch

    from kfrtrl_jax.studies.benchmarking import torch_peers

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "JAX runs on a GPU and PyTorch sees none: install a build of PyTorch with CUDA, or set "
            "JAX_PLATFORMS=cpu"
        )
    torch.set_num_threads(made_with.cores())
    theirs = [torch.tensor(np.array(x), device=device) for x in (weights, xs, ys)]
    state = [torch_peers.start(peer.estimator, theirs[0], peer.batch)]

    def run() -> Any:
        state[0] = torch_peers.train(peer.estimator, state[0], theirs[1], theirs[2], RATE)
        if device == "cuda":
            torch.cuda.synchronize()
        return ()

    threads = f", {made_with.cores()} threads" if device == "cpu" else ""
    return run, f"PyTorch eager{threads}"


def _braintrace(peer: Peer, weights: Array, xs: Array, ys: Array) -> tuple[Any, str]:
    from kfrtrl_jax.studies.benchmarking import braintrace_peers

    train, present = braintrace_peers.make_training(peer.estimator, weights, peer.batch, RATE)

    def run() -> Array:
        train(xs, ys)
        return present()

    name = braintrace_peers.ALGORITHMS[peer.estimator]["algorithm"].__name__
    together = ", one pair for all lanes" if peer.estimator == "uoro" and peer.batch > 1 else ""
    return run, f"BrainTrace's {name}{together}, jitted"
