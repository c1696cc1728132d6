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
# At the heart of online learning is the influence matrix G: how every weight has affected every unit of
# the network so far. A step of the network turns it into J G + I, where J says how the old state affects
# the new one, and I how the weights affect it directly. G is too large to keep, so an estimator keeps
# something smaller. UORO and KF-RTRL keep random products whose *mean* is G: they are unbiased, but a
# single draw is far off.
#
# Here we make an estimator that trades one for the other. It lets the past fade: it carries G on as
# *decay* J G + I, with a decay between 0 and 1. What is long ago then counts too little (a bias), but the
# noise of long ago fades too. [Your own estimator](../own_estimator.md) writes an estimator from nothing;
# this one changes any other.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import kfrtrl_jax as kf

smoke = os.environ.get("KFRTRL_TUTORIAL_SCALE") == "smoke"  # a size for tests: it shows nothing
decays = [0.0, 1.0] if smoke else [0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0]
units, draws, steps = (4, 64, 400) if smoke else (16, 1000, 20_000)

# %% [markdown]
# ## The estimator
#
# An estimator is `init`, `push` (carry G through a step) and `pull` (the gradient it gives). Only `push`
# changes: `linearization.scaled(decay)` is the same step with *decay* J in the place of J.


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
# `kf.certify` runs a small network on random inputs and compares many draws of each estimator with exact
# RTRL. Faded, `rtrl` has the bias alone, without noise; it is what the others are in the mean. At a decay of
# 1 there is no bias, and at 0 nothing is left but the last step.

# %%
