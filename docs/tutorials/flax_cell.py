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
# # Your Flax cell on your text
#
# A recurrent cell that the library does not have, written in Flax, is trained on a text file, one
# update per character, and then writes text itself. No derivative is written anywhere: the library
# reads what the cell computes, and finds how the weights enter and how one state affects the next.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import kfrtrl_jax as kf

# The first sizes are those of tests, at which the figures show nothing.
smoke = os.environ.get("KFRTRL_TUTORIAL_SCALE") == "smoke"
units, steps, draws, length = (8, 400, 16, 40) if smoke else (64, 30_000, 500, 400)
# The path of a text file; "" for the documentation topics that come with every Python.
my_text = ""
task = kf.tasks.text(batch_size=16, data_dir=my_text)
symbols = task.symbols

# %% [markdown]
# ## The cell
#
# A gate decides for every unit how much of its old value is replaced by a new one. The old values
# are brought to mean 0 and variance 1 (layer normalization) before the weights see them. The first
# state is not 0, where this has a slope of a thousand.


# %%
class NormedGate(nnx.Module):
    def __init__(self, inputs: int, units: int, *, rngs: nnx.Rngs):
        self.units = units
        self.norm = nnx.LayerNorm(units, rngs=rngs)
        self.gate = nnx.Linear(inputs + units, units, rngs=rngs)
        self.new = nnx.Linear(inputs + units, units, rngs=rngs)

    def initialize_carry(self, input_shape, rngs=None):
        return jnp.broadcast_to(jnp.linspace(-1, 1, self.units), (*input_shape[:-1], self.units))

    def __call__(self, carry, x):
        seen = jnp.concatenate([x, self.norm(carry)], axis=-1)
        gate = nnx.sigmoid(self.gate(seen))
        carry = (1 - gate) * carry + gate * jnp.tanh(self.new(seen))
        return carry, carry


def make_cell(inputs, units):
    return kf.cells.from_flax(lambda rngs: NormedGate(inputs, units, rngs=rngs), jnp.zeros(inputs))


# %% [markdown]
# ## What the library has found
#
# `explain` prints where the weights enter (each place is a *site*), and what each estimator costs
# on this cell. The two products with the gate's and the new value's weights are one site of 32
# columns, and act on each unit apart ("D diagonal"). The two vectors of the normalization reach
# all units ("D dense").

# %%
found = kf.linearization.explain(make_cell(8, 16), jnp.zeros(8), batch_size=16)

# %% [markdown]
# ## What the estimators are worth on it
#
# `certify` compares them with the exact gradient (`rtrl`) on random inputs. It needs a small
# version of the cell, as the exact one is expensive.

# %%
certificate = kf.certify(
    make_cell(3, 8), jnp.zeros(3), ("rtrl", "kf_rtrl", "uoro", "snap"), draws=draws, rounds=0
)
print(certificate)

# %% [markdown]
# `kf_rtrl` and `uoro` are right in the mean, and the noise of a single draw is many times the size
# of what they estimate. `snap` has no noise but leaves most of it out, as the normalization makes
# every unit depend on all others; its direction (the cosine) is still the best of the three, and
# so we take it.

# %% [markdown]
# ## Training
#
# An update at every character of 16 places of the text. The last one to eight steps of each
# gradient are exact, and `snap` continues it into the time before them.

# %%
cell, readout = task.around(
    make_cell(task.input_size, units),
    kf.readouts.linear(input_size=units, output_size=task.output_size),
)
learner = kf.make_learner(
    cell,
    readout,
    "snap",
    optax.adam(1e-3),
    batch_size=task.batch_size,
    example_input=task.example_input,
    segment_length=8,
    update_every=1,
)
state, metrics = kf.run(learner, task, steps=steps, key=jax.random.key(0))
parts = np.array(metrics.loss).reshape(-1, steps // 40).mean(axis=1)
print(f"bits per character: {parts[0]:.2f} at first, {parts[-1]:.2f} at the end")

# %%
figure, axes = plt.subplots(figsize=(7, 3))
axes.plot(steps // 40 * np.arange(1, 41), parts)
axes.set(xlabel="characters read, each lane", ylabel="bits per character")
figure.savefig("flax_cell.png", bbox_inches="tight")

# %% [markdown]
# ## Writing
#
# `kf.predict` is a step without learning. The network reads its own last character, draws the next
# one from what it predicts, and so on.


# %%
def write(parameters, key):
    def one(state, key):
        carry, token = state
        carry, logits = kf.predict(cell, readout, parameters, carry, token)
        # Divided by less than 1, the likelier characters become more likely still.
        token = jax.random.categorical(key, logits / 0.7)
        return (carry, token), token

    start = cell.initial_carry(), jnp.int32(symbols.index("\n"))
    return jax.lax.scan(one, start, jax.random.split(key, length))[1]


tokens = jax.jit(write)(state.learner.parameters, jax.random.key(1))
print("".join(symbols[token] for token in tokens))

# %% [markdown]
# After half a million characters this is the look of the documentation, its indentation, tables
# and endings of words, and no sense. With more text and units it gets better slowly; the point
# here is that nothing was written but the cell.
