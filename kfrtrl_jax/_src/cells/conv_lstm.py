"""The convolutional LSTM."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.initializers import gaussian

State = tuple[Array, Array]


def conv_lstm(
    *,
    input_size: int,
    size: tuple[int, int],
    channels: int,
    kernel_size: int = 3,
    init_scale: float = 0.0,
    forget_bias: float = 1.0,
) -> Cell:
    """An LSTM over images, its products convolutions (Shi et al., 2015, arXiv:1506.04214).

    [i; f; g; o] = W * x + R * h + b, c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c').
    Convolutions have a square kernel, and zeros around the image such that it keeps its size; gates are
    taken pixel by pixel. The paper's peepholes are left out. The carry is (c, h), two images [height,
    width, channels], the output h as one vector.

    Args:
      input_size: height * width * the number of x's channels. x is an image [height, width, channels],
        or that as one vector in the same order.
      size: (height, width) of all images.
      channels: of c and h, so that n is 2 * height * width * channels.
      kernel_size: height and width of the kernel.
      init_scale: standard deviation of W and R; 0 means the number of weights of a gate and channel,
        kernel_size^2 * (channels of x and of h), to the power of -1/2.
      forget_bias: the initial bias of f.

    Raises:
      ValueError: if a size is less than 1, or input_size is not a multiple of height * width.
    """
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (height, width), both at least 1, got {size}")
    bounds.require("[1, inf)", channels=channels, kernel_size=kernel_size)
    pixels = math.prod(size)
    if input_size < 1 or input_size % pixels:
        raise ValueError(
            f"input_size must be a multiple of height * width ({pixels}), got {input_size}"
        )
    of_input = input_size // pixels

    def init(key: Key) -> dict[str, Array]:
        rows = kernel_size**2 * (of_input + channels)
        weights = gaussian(key, (rows, 4 * channels), init_scale)
        kernels = weights.reshape(kernel_size, kernel_size, of_input + channels, 4 * channels)
        bias = jnp.zeros((4, channels), weights.dtype).at[1].set(forget_bias)
        return {
            "input": kernels[:, :, :of_input],
            "recurrent": kernels[:, :, of_input:],
            "bias": bias.reshape(-1),
        }

    def initial_carry() -> State:
        zeros = jnp.zeros((*size, channels))
        return zeros, zeros

    def step(params: dict[str, Array], carry: State, x: Array) -> tuple[State, Array]:
        c, h = carry
        image = x.reshape(*size, of_input)
        z = _convolved(image, params["input"]) + _convolved(h, params["recurrent"])
        i, f, g, o = jnp.split(z + params["bias"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h.reshape(-1)

    return Cell(init, initial_carry, step)


def _convolved(image: Array, kernel: Array) -> Array:
    """An image [height, width, channels] with a kernel [height, width, channels, new channels]."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        image[None], kernel, (1, 1), "SAME", dimension_numbers=layout
    )[0]
