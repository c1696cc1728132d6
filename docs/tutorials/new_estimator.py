# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A new estimator, and what it is worth
#
# At the heart of online learning is the influence matrix G: how every weight has affected every
# unit of the network so far. A step of the network turns it into J G + I, where J says how the old
# state affects the new one, and I how the weights affect it directly. G is too large to keep, so
# an estimator keeps something smaller. UORO and KF-RTRL keep random products whose *mean* is G:
# they are unbiased, but a single draw is far off.
#
# Here we make an estimator that trades one for the other. It lets the past fade: it carries G on
# as *decay* J G + I, with a decay between 0 and 1. What is long ago then counts too little (a
# bias), but the noise of long ago fades too. [Your own estimator](../own_estimator.md) writes an
# estimator from nothing; this one changes any other.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import kfrtrl_jax as kf

# The first sizes are those of tests, at which the figures show nothing.
smoke = os.environ.get("KFRTRL_TUTORIAL_SCALE") == "smoke"
decays = [0.0, 1.0] if smoke else [0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0]
units, draws, steps = (4, 64, 400) if smoke else (16, 1000, 20_000)

# %% [markdown]
# ## The estimator
#
# An estimator is `init`, `push` (carry G through a step) and `pull` (the gradient it gives). Only
# `push` changes: `linearization.scaled(decay)` is the same step with *decay* J in the place of J.


# %%
def fading(estimator: kf.InfluenceEstimator, decay: float) -> kf.InfluenceEstimator:
    def push(state, linearization, key):
        return estimator.push(state, linearization.scaled(jnp.asarray(decay)), key)

    return estimator._replace(push=push)


kf.register.estimator("fading", fading)

# %% [markdown]
# Registered, it has a name in texts and configs, and can be put together with others: as
# `"fading(uoro, decay=0.8)"`, or `"average(fading(kf_rtrl, decay=0.9), copies=4)"`.
#
# ## The certificate
#
# `kf.certify` runs a small network on random inputs and compares many draws of each estimator with
# exact RTRL. Faded, `rtrl` has the bias alone, without noise; it is what the others are in the
# mean. At a decay of 1 there is no bias, and at 0 nothing is left but the last step.

# %%
cell = kf.cells.vanilla(input_size=4, hidden_size=units)


def certified(estimators):
    return kf.certify(cell, jnp.zeros(4), estimators, draws=draws, rounds=0)


faded = certified([f"fading({name}, decay={d})" for name in ("rtrl", "kf_rtrl") for d in decays])
neighbours = certified(["snap"] if smoke else ["rtrl", "kf_rtrl", "uoro", "truncated", "snap"])
print(faded)
print(neighbours)

# %% [markdown]
# Left to right: whether the estimator is right in the mean ("-" where nothing is claimed), how
# many standard errors the mean is off, bias and noise relative to G, and the cosine of a gradient
# to the exact one.
#
# KF-RTRL is found unbiased: the mean of its draws is a few standard errors from G at most. Faded,
# it is found biased, by as much as faded `rtrl` is (and a little more, as the mean of so many
# draws is not quite the mean), and the noise falls with the decay.
#
# ## Is it worth it?
#
# The mean square error of an estimate is the square of its bias plus its noise. The mean of c
# independent copies has a c-th of the noise and the same bias. Training has such means too: a
# small learning rate adds up many gradients, whose noise then averages out, and whose bias does
# not.

# %%
bias, noise = (
    np.array([getattr(row, field) for row in rows])
    for rows, field in (
        (faded.rows[: len(decays)], "relative_bias"),
        (faded.rows[len(decays) :], "relative_noise"),
    )
)
figure, axes = plt.subplots(figsize=(7, 4))
for copies, color in zip([1, 4, 16, 64], ["C0", "C1", "C2", "C3"]):
    error = bias**2 + noise / copies
    axes.semilogy(decays, error, color, marker="o", label=f"faded KF-RTRL, {copies} copies")
    print(f"{copies:3d} copies: the best of these decays is {decays[int(np.argmin(error))]}")
axes.semilogy(decays, np.maximum(bias**2, 1e-4), "k:", label="its bias alone: faded RTRL")
axes.axhline(neighbours.rows[-1].relative_bias ** 2, color="gray", label="SnAp-1")
axes.set(xlabel="decay", ylabel="mean square error / |G|²", ylim=(1e-3, None))
axes.legend()
figure.savefig("new_estimator.png", bbox_inches="tight")

# %% [markdown]
# The best decay depends on how much noise there is besides. For a single copy it is 0: one product
# is exact for one step, and all that is older is worth less than its noise. The mean of 64 copies
# is best unfaded, and between them lies a compromise that beats both ends.
#
# ## In training
#
# The copy task: a string is read and then to be repeated; the longer the strings that the network
# gets right, the longer those that it is given. What is printed is the length that each has come
# to, for three seeds.

# %%
task = kf.tasks.copy(batch_size=16)


def length_learned(estimator, seed):
    network = task.around(
        kf.cells.recurrent_highway(input_size=task.input_size, hidden_size=32),
        kf.readouts.linear(input_size=32, output_size=task.output_size),
    )
    learner = kf.make_learner(
        *network,
        estimator,
        optax.adam(1e-3),
        batch_size=16,
        example_input=task.example_input,
        check=False,
    )
    state, metrics = kf.run(learner, task, steps=steps, key=jax.random.key(seed))
    return int(task.metrics(state.task)["sequence_length"]), metrics


trained = [
    "truncated",
    "fading(kf_rtrl, decay=0.5)",
    "fading(kf_rtrl, decay=0.8)",
    "kf_rtrl",
    "snap",
]
for name in trained[-1:] if smoke else trained:
    print(f"{name:28s} {[length_learned(name, seed)[0] for seed in range(1 if smoke else 3)]}")

# %% [markdown]
# Truncation to one step learns nothing here; all others do. Of the two faded ones and KF-RTRL none
# is clearly ahead: their ranges over three seeds overlap. A bias that looks large in the
# certificate need not hurt, and a smaller error need not help: what is to be trusted is a run on
# the task itself.
