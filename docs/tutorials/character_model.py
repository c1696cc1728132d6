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
# # A character model, and how good its gradients are
#
# A recurrent network reads a text character by character, says which comes next, and learns from
# every single one. For an exact gradient it would have to keep how every weight has affected every
# unit so far: the influence matrix, here 32 numbers for every weight. This is real-time recurrent
# learning, RTRL, and only small networks can afford it. What larger ones use are estimates of that
# matrix. As our network is small, we can do both, and look at every estimate beside the exact
# matrix while the network learns.
#
# An estimate is judged by the direction of the gradients that it gives: by their cosine to the
# exact ones, which is 1 for the same direction and 0 for one that has nothing to do with it.

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import kfrtrl_jax as kf

# The first sizes are those of tests, at which the figures show nothing.
smoke = os.environ.get("KFRTRL_TUTORIAL_SCALE") == "smoke"
units, lanes, chunks, chunk = (4, 2, 4, 30) if smoke else (32, 4, 100, 90)

# %% [markdown]
# ## The text
#
# The Penn Treebank, if the environment variable `KFRTRL_DATA_DIR` names its folder (`kfrtrl data
# --out=DIR` fetches it). Otherwise the documentation topics that come with every Python, which are
# text and code, and so have more kinds of characters. Four places of the text are read at once,
# each by a lane of its own.

# %%
if os.environ.get("KFRTRL_DATA_DIR"):
    task, source = kf.tasks.penn_treebank(batch_size=lanes), "the Penn Treebank"
else:
    task, source = kf.tasks.text(batch_size=lanes), "Python's documentation topics"
print(
    f"{source}: {task.input_size} kinds of characters, guessing: {task.chance_loss:.2f} bits each"
)

# %% [markdown]
# ## The estimates
#
# | | what is kept |
# |---|---|
# | `rtrl` | everything |
# | `ok` | eight random products of a vector and a matrix (Benzing et al., 2019) |
# | `kf_rtrl` | one such product (Mujika, Meier and Steger, 2018) |
# | `uoro` | one product of two vectors (Tallec and Ollivier, 2018) |
# | `snap` | how each weight has affected the one unit that it feeds (Menick et al., 2021) |
# | `truncated` | nothing: the gradient of the last step alone |
#
# The mean of the random ones is the exact matrix. `snap` has no randomness, and is off by what it
# leaves out.
#
# `tracked(estimator, reference)` is the first of two estimators, with a running comparison to the
# second.

# %%
e = kf.estimators
estimators = {
    "rtrl": e.rtrl(),
    "ok": e.ok(rank=8),
    "kf_rtrl": e.kf_rtrl(),
    "uoro": e.uoro(),
    "snap": e.snap(),
    "truncated": e.truncated(),
}


def train(estimator):
    """Bits per character of every chunk of steps, and the cosine at its end."""
    cell, readout = task.around(
        kf.cells.recurrent_highway(input_size=task.input_size, hidden_size=units),
        kf.readouts.linear(input_size=units, output_size=task.output_size),
    )
    learner = kf.make_learner(
        cell,
        readout,
        e.tracked(estimator, e.rtrl()),
        optax.adam(3e-3),
        batch_size=lanes,
        example_input=task.example_input,
    )
    measure = jax.jit(lambda state: learner.diagnostics(state)["cosine"])
    state, metrics = kf.run(learner, task, steps=chunk, key=jax.random.key(0))
    curve = [(metrics.loss.mean(), measure(state.learner))]
    for _ in range(chunks - 1):
        state, metrics = kf.run(learner, task, steps=chunk, state=state)
        curve.append((metrics.loss.mean(), measure(state.learner)))
    return np.array(curve)


shown = ["rtrl", "kf_rtrl", "snap", "truncated"] if smoke else list(estimators)
curves = {name: train(estimators[name]) for name in shown}

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
steps = chunk * np.arange(1, chunks + 1)
width = max(1, chunks // 10)


def smooth(values):
    return np.convolve(values, np.ones(width) / width, mode="valid")


for name, curve in curves.items():
    left.plot(steps[width - 1 :], smooth(curve[:, 0]), label=name)
    right.plot(steps[width - 1 :], smooth(curve[:, 1]), label=name)
left.set(xlabel="characters read, each lane", ylabel="bits per character")
right.set(xlabel="characters read, each lane", ylabel="cosine to the exact gradient")
figure.legend(*left.get_legend_handles_labels(), loc="outside right")
figure.savefig("character_model.png", bbox_inches="tight")

# %%
print("             bits per character   cosine: first quarter   last quarter")
for name, curve in curves.items():
    first, *_, last = np.array_split(curve, 4)
    bits, early, late = last[:, 0].mean(), first[:, 1].mean(), last[:, 1].mean()
    print(f"{name:12s} {bits:10.3f} {early:20.3f} {late:18.3f}")

# %% [markdown]
# What came out on the Penn Treebank, from this start and from `jax.random.key(1)`:
#
# - While the network learns, its memory grows, and the estimates get worse: KF-RTRL's cosine
#   falls from between 0.6 and 0.7 to about a half, that of SnAp-1 from nearly 1 to less than 0.9.
#   That of 8-OK stays at 1.
# - The exact gradients, 8-OK and SnAp-1 learn alike, and come out 0.05 to 0.1 bits before
#   truncation. So little is to be had from memory after so few characters. KF-RTRL lags behind
#   truncation at first, and is no better than it at the end.
# - UORO's direction has little to do with the exact one, and at this learning rate it hardly
#   learns.
