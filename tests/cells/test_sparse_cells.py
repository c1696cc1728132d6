import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells
from kfrtrl_jax.linearization import make_linearizer
from kfrtrl_jax.training.config import float_fields
from tests.helpers.jacobians import inputs
from tests.training.small import small
from tests.trajectories import INPUT_SIZE

N = 20
SIZES = {"input_size": INPUT_SIZE, "hidden_size": N}
SPARSE = {
    "vanilla": cells.vanilla,
    "gru": cells.gru,
    "lstm": cells.lstm,
    "recurrent_highway": lambda **kwargs: cells.recurrent_highway(
        **{"depth": 2, "init_scale": 0.0, **kwargs}
    ),
}


def kept(params):
    return [np.asarray(w) != 0 for w in jax.tree.leaves(params)]


@pytest.mark.parametrize("name", SPARSE)
def test_a_part_of_the_recurrent_weights_is_absent(name):
    cell = SPARSE[name](**SIZES, sparsity=0.75)
    params = cell.init(jax.random.key(0))
    masks = kept(params)
    for mask, weights in zip(masks, jax.tree.leaves(params), strict=True):
        rows, columns = mask.shape
        recurrent = mask[rows - 1 - N : -1]
        if rows == INPUT_SIZE + 1:  # of the GRU's candidate, from the input alone
            assert mask.all()
            continue
        assert mask[-1].all()
        assert mask[: rows - 1 - N].all()
        assert recurrent.mean() == pytest.approx(0.25)
        assert np.ptp(recurrent.sum(axis=0)) <= 1  # the same number for every unit
        deviation = np.std(np.asarray(weights)[mask])
        assert deviation == pytest.approx((mask.sum() / columns) ** -0.5, rel=0.25)
    # Other parameters, the same mask; another mask.
    for a, b in zip(masks, kept(cell.init(jax.random.key(1))), strict=True):
        np.testing.assert_array_equal(a, b)
    other = kept(SPARSE[name](**SIZES, sparsity=0.75, mask_seed=1).init(jax.random.key(0)))
    assert any(np.any(a != b) for a, b in zip(masks, other, strict=True))


@pytest.mark.parametrize("name", SPARSE)
def test_absent_weights_have_no_effect_and_no_gradient(name):
    cell = SPARSE[name](**SIZES, sparsity=0.75)
    params = cell.init(jax.random.key(0))
    carry = jax.tree.map(lambda c: c + 0.3, cell.initial_carry())
    x = jnp.ones(INPUT_SIZE)

    @jax.jit
    @jax.value_and_grad
    def total(params):
        return jnp.sum(cell.step(params, carry, x)[1] ** 2)

    filled = jax.tree.map(lambda w: np.where(w == 0, 7.0, w), params)
    value, gradient = total(filled)
    assert value == total(params)[0]
    for g, mask in zip(jax.tree.leaves(gradient), kept(params), strict=True):
        assert not np.any(g[~mask])


@pytest.mark.parametrize("name", SPARSE)
def test_without_sparsity_there_is_no_mask(name):
    cell = SPARSE[name](**SIZES, sparsity=0.0, mask_seed=3)
    params, plain = cell.init(jax.random.key(0)), SPARSE[name](**SIZES)
    assert all(mask.all() for mask in kept(params))
    jaxprs = [jax.make_jaxpr(c.step)(params, c.initial_carry(), jnp.ones(3)) for c in (cell, plain)]
    assert str(jaxprs[0]) == str(jaxprs[1])
    assert not jaxprs[0].consts


def test_the_linearization_of_a_sparse_cell_knows_its_masks_and_its_jacobian():
    cell = cells.gru(**SIZES, sparsity=0.9)
    params, carry, x = cell.init(jax.random.key(0)), jnp.linspace(-1, 1, N), inputs()[0]
    structure = make_linearizer(cell, x, 1).structure
    jacobian = jax.jit(jax.jacobian(lambda h: cell.step(params, h, x)[0]))(carry)
    np.testing.assert_array_equal(structure.jacobian_mask.array, jacobian != 0)
    assert structure.jacobian_mask.density < 0.4
    for site in structure.sites:
        mask = np.asarray(params[site.label]) != 0
        np.testing.assert_array_equal(
            mask, np.ones_like(mask) if site.weights_mask is None else site.weights_mask.array
        )


def test_structures_of_equal_cells_are_equal():
    structures = [
        make_linearizer(
            cells.vanilla(**SIZES, sparsity=0.9, mask_seed=seed), inputs()[0], 1
        ).structure
        for seed in (0, 0, 1)
    ]
    assert structures[0] == structures[1]
    assert hash(structures[0]) == hash(structures[1])
    assert structures[0] != structures[2]


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.5])
def test_a_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
        cells.vanilla(**SIZES, sparsity=sparsity)


def test_in_a_sweep_each_sparsity_is_a_program_of_its_own():
    config = small({"cell.sparsity": 0.5})
    assert config.cell.sparsity == 0.5
    assert "cell.init_scale" in float_fields(config)
    assert "cell.sparsity" not in float_fields(config)
