"""Every kind of matrix and every operation beside dense arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax._src.matrices import (
    Banded,
    BlockColumns,
    BlockRows,
    Composed,
    Dense,
    FactoredTerm,
    Index,
    Shared,
    Terms,
    below_each_other,
    compose,
    places_of_bands,
    runs,
    side_by_side,
    single,
    stacked,
    take,
    through_weights,
    total,
)
from tests.helpers.interpreter import evaluated

B, N, G = 2, 5, 8
# A diagonal beside another, an off-diagonal with gaps, entries without any order, and no entry at all.
COLUMNS = {
    "two diagonals": [[0, 1, 2, 3, 4], [5, 6, 7, -1, -1]],
    "shifted": [[-1, 0, 1, 2, -1]],
    "mixed": [[7, 2, 5, 0, 3], [1, 6, -1, 4, 2], [0, 7, 1, -1, -1]],
    "none": np.zeros((0, N), int),
}


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def banded(name, lead=(B,), seed=0):
    columns = np.asarray(COLUMNS[name], int).reshape(-1, N)
    values = random(*lead, *columns.shape, seed=seed) * (columns >= 0)
    return Banded(values, Index(columns), G)


def kinds(lead=(B,)):
    """Matrices n x g of each kind."""
    return {
        "dense": Dense(random(*lead, N, G, seed=1)),
        **{name: banded(name, lead) for name in COLUMNS},
        **{
            f"composed {name}": Composed(random(*lead, N, N, seed=2), banded(name, lead))
            for name in COLUMNS
        },
        "blocks": BlockRows(
            (
                banded("mixed", lead).rows(0, 2),
                Dense(random(*lead, 2, G, seed=1)),
                banded("shifted", lead).rows(4, 5),
            )
        ),
    }


KINDS = list(kinds())


def whole(matrix):
    """[..., n, g], entry by entry, without the library's own products."""
    if isinstance(matrix, Dense):
        return np.asarray(matrix.values)
    if isinstance(matrix, BlockRows):
        return np.concatenate([whole(part) for part in matrix.parts], axis=-2)
    if isinstance(matrix, Composed):
        return np.asarray(matrix.left) @ whole(matrix.right)
    result = np.zeros((*matrix.lead, *matrix.shape))
    for band, columns in enumerate(matrix.columns.array):
        for row, column in enumerate(columns):
            if column >= 0:
                result[..., row, column] += matrix.values[..., band, row]
    return result


def close_all(function, args, want):
    """What a function of arrays and matrices gives is what is expected, by names."""
    found = evaluated(function, *args)
    assert found.keys() == want.keys()
    for name, expected in want.items():
        assert found[name].shape == expected.shape, name
        np.testing.assert_allclose(found[name], expected, atol=1e-12, err_msg=name)


def close(got, want):
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_products_norms_and_parts_are_those_of_the_dense_matrix(kind):
    m = kinds()[kind]
    d = whole(m)
    assert m.shape == (N, G)
    assert m.lead == (B,)
    x, v, s, scales = random(B, G, 3), random(B, N), random(B), random(B, G)
    rows, columns = np.array([[0, 4, -1], [2, 3, 1]]), np.array([[0, 2, 1], [7, -1, 6]])
    close_all(
        lambda m, x, v, s, scales: {
            "dense": m.dense(),
            "times": m.times(x),
            "vector_times": m.vector_times(v),
            "squared_norm": m.squared_norm(),
            "column_squares": m.column_squares(),
            "row_squares": m.row_squares(),
            "rows": m.rows(1, 4).dense(),
            "all rows": m.rows(0, N).dense(),
            "scaled": m.scaled(s).dense(),
            "scale_columns": m.scale_columns(scales).dense(),
            "entries_at": m.entries_at(rows, columns),
        },
        (m, x, v, s, scales),
        {
            "dense": d,
            "times": d @ x,
            "vector_times": np.einsum("bn,bng->bg", v, d),
            "squared_norm": (d**2).sum((1, 2)),
            "column_squares": (d**2).sum(1),
            "row_squares": (d**2).sum(2),
            "rows": d[:, 1:4],
            "all rows": d,
            "scaled": s[:, None, None] * d,
            "scale_columns": d * scales[:, None],
            "entries_at": np.where((rows >= 0) & (columns >= 0), d[:, rows, columns], 0),
        },
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_kept_is_zero_even_if_it_is_infinite(kind):
    m = kinds()[kind]
    infinite = m.scaled(jnp.array([np.inf, 1.0]))
    close(infinite.kept(jnp.array([0.0, 1.0])).dense(), whole(m) * np.array([0, 1])[:, None, None])


@pytest.mark.parametrize("kind", [k for k in KINDS if "composed" not in k])
def test_scaled_addition(kind):
    m, x, s = kinds()[kind], random(B, N, G, seed=5), random(B)
    close(m.add_to(x, s), x + s[:, None, None] * whole(m))


def square(kind, seed):
    """n x n, to be multiplied with."""
    if kind == "dense":
        return Dense(random(B, N, N, seed=seed))
    columns = {"diagonal": [[0, 1, 2, 3, 4]], "two": [[1, 0, 3, 2, -1], [0, 1, 2, 3, 4]]}[kind]
    values = random(B, len(columns), N, seed=seed) * (np.asarray(columns) >= 0)
    return Banded(values, Index(np.asarray(columns)), N)


@pytest.mark.parametrize("right", ["dense", *COLUMNS])
@pytest.mark.parametrize("left", ["dense", "diagonal", "two"])
def test_products_of_two(left, right):
    a, b = square(left, 3), kinds()[right]
    weights = random(N, G, seed=4)  # [m, g]
    product, *found = evaluated(
        lambda a, b: (p := compose(a, b), p.dense(), through_weights(b, weights, a).dense()), a, b
    )
    close(found[0], whole(a) @ whole(b))
    close(found[1], np.einsum("bng,mg,bmc->bnc", whole(b), weights, whole(a)))
    assert isinstance(product, Banded) == isinstance(a, Banded) & isinstance(b, Banded) or (
        right == "mixed"
    )


def test_sums_are_banded_as_long_as_each_row_has_a_column_once():
    diagonal, two, dense = (square(k, i) for i, k in enumerate(("diagonal", "two", "dense")))
    for parts in ([diagonal, two], [diagonal, dense, two], [two], []):
        found = total(parts, N, N)
        close(
            found.dense() if parts else found.dense() + np.zeros((B, N, N)),
            sum((whole(m) for m in parts), np.zeros((B, N, N))),
        )
    assert total([diagonal, two], N, N).num_bands == 2
    # (0, 0) twice in bands of different columns: no longer one entry a column.
    conflict = Banded(jnp.ones((B, 1, N)), Index(np.array([[0, 2, 1, 3, 4]])), N)
    close(total([diagonal, conflict], N, N).dense(), whole(diagonal) + whole(conflict))


def test_side_by_side():
    parts = [kinds()[k] for k in ("two diagonals", "mixed")]
    close(side_by_side(parts).dense(), np.concatenate([whole(m) for m in parts], -1))
    parts.append(kinds()["dense"])
    close(side_by_side(parts).dense(), np.concatenate([whole(m) for m in parts], -1))


def block_columns():
    """A 5 x 5 matrix of two blocks, the second with two factored terms, and the same as an array."""
    rest = (Dense(random(B, N, 2, seed=1)), Banded(random(B, 1, N), Index([[0, 1, 2, -1, -1]]), 3))
    rest = (rest[0], Banded(rest[1].values * np.array([1, 1, 1, 0, 0]), rest[1].columns, 3))
    left = banded("two diagonals", seed=7)
    rights = [
        Dense(random(B, 6, 3, seed=8)),
        Banded(random(B, 1, 6), Index([[0, 1, 2, -1, -1, -1]]), 3),
    ]
    rights[1] = Banded(rights[1].values * (rights[1].columns.array >= 0), rights[1].columns, 3)
    weights = random(6, G, seed=9)
    products = tuple(FactoredTerm(left, weights.T, right, 1) for right in rights)
    d = np.concatenate([whole(block) for block in rest], -1)
    for right in rights:
        d[..., 2:] += np.einsum("bng,mg,bmc->bnc", whole(left), weights, whole(right))
    return BlockColumns(rest, products), d


def test_block_columns():
    m, d = block_columns()
    x, v, s = random(B, N, 3), random(B, N), random(B)
    first = BlockColumns(m.rest, m.products[1:])  # with a banded right alone
    close_all(
        lambda m, first, x, v, s: {
            "dense": m.dense(),
            "times": m.times(x),
            "times_few": m.times_few(x),
            "times_vector": m.times_vector(v),
            "vector_times": m.vector_times(v),
            "rows": m.rows(1, 4).dense(),
            "scaled": m.scaled(s).dense(),
            "times_blocks": jnp.concatenate(m.times_blocks([x[:, :2], x[:, 2:]]), axis=1),
            "diagonal": m.diagonal(),
            "diagonals": first.diagonal() - jnp.einsum("bii->bi", first.dense()),
            "kept": m.scaled(jnp.array([np.inf, 1.0])).kept(jnp.array([0.0, 1.0])).dense(),
        },
        (m, first, x, v, s),
        {
            "dense": d,
            "times": d @ x,
            "times_few": d @ x,
            "times_vector": np.einsum("bij,bj->bi", d, v),
            "vector_times": np.einsum("bi,bij->bj", v, d),
            "rows": d[:, 1:4],
            "scaled": s[:, None, None] * d,
            "times_blocks": d @ x,
            "diagonal": np.einsum("bii->bi", d),
            "diagonals": np.zeros((B, N)),
            "kept": d * np.array([0, 1])[:, None, None],
        },
    )


def terms(names):
    """Terms of groups of each kind, and the same as an array, [B, T, n, g]."""
    groups, arrays = [], []
    for name in names:
        lead = (3, B) if name != "composed two diagonals" else (2, B)
        group = kinds(lead)[name]
        groups.append(group)
        arrays.append(np.moveaxis(whole(group), 0, 1))
    return Terms(tuple(groups)), np.concatenate(arrays, axis=1)


def of_terms(m, scales, x, v, a, each, mixes):
    """What every operation gives, by its name."""
    return {
        "dense": m.dense(),
        "squared_norms": m.squared_norms(),
        "column_squares": m.column_squares(),
        "row_squares": m.row_squares(),
        "times": m.times(x),
        "vector_times": m.vector_times(v),
        "scaled": m.scaled(scales).dense(),
        "kept": m.kept(jnp.array([1.0, 0.0])).dense(),
        "rows": m.rows(1, 4).dense(),
        "entries_at": m.entries_at(np.arange(N)[:, None], np.array([0, 1, 2, -1])),
        "add_to": m.add_to(a, scales),
        "add_to_each": m.add_to_each(each, mixes),
    }


@pytest.mark.parametrize(
    "names",
    [[k] for k in KINDS] + [["dense", "mixed", "composed mixed", "composed two diagonals"]],
    ids=str,
)
def test_terms(names):
    m, d = terms(names)
    t = d.shape[1]
    assert m.count == t
    assert m.shape == (N, G)
    args = (random(B, t), random(B, t, G, 3), random(B, N))
    args = (*args, random(B, N, G), random(B, N, G, 2), random(B, 2, t))
    scales, x, v, a, each, mixes = args
    close_all(
        of_terms,
        (m, *args),
        {
            "dense": d,
            "squared_norms": (d**2).sum((2, 3)),
            "column_squares": (d**2).sum(2),
            "row_squares": (d**2).sum(3),
            "times": d @ x,
            "vector_times": np.einsum("bn,btng->btg", v, d),
            "scaled": scales[..., None, None] * d,
            "kept": d * np.array([1, 0])[:, None, None, None],
            "rows": d[:, :, 1:4],
            "entries_at": np.pad(d[:, :, :, :3], [(0, 0)] * 3 + [(0, 1)]),
            "add_to": a + np.einsum("bt,btng->bng", scales, d),
            "add_to_each": each + np.einsum("brt,btng->bngr", mixes, d),
        },
    )


@pytest.mark.parametrize("kind", ["dense", "mixed"])
def test_a_single_term(kind):
    matrix = kinds()[kind]
    m, d = single(matrix), whole(matrix)
    close(m.dense(), d[:, None])
    each, mixes = random(B, N, G, 2), random(B, 2, 1)
    close(m.add_to_each(each, mixes), each + np.einsum("brt,bng->bngr", mixes, d))
    close(m.add_to(each[..., 0], mixes[:, 0]), each[..., 0] + mixes[:, 0, :, None] * d)


def test_one_left_factor_serves_several_right_ones():
    """As where a step uses a weight several times."""
    left, right = random(2, 1, B, N, N), banded("mixed", (2, 3, B))
    group = Composed(left, right)
    d = (np.asarray(left) @ whole(right)).reshape(6, B, N, G)
    m, scales = Terms((group,)), random(B, 6)
    close(m.dense(), np.moveaxis(d, 0, 1))
    close(m.squared_norms(), np.moveaxis((d**2).sum((2, 3)), 0, 1))
    a = random(B, N, G)
    close(m.add_to(a, scales), a + np.einsum("bt,tbng->bng", scales, d))


@pytest.mark.parametrize("kind", ["dense", "mixed", "composed mixed"])
def test_several_terms_as_one_matrix_are_as_good_as_apart(kind):
    shared = Shared(kinds((1, B))[kind], 2)
    d = whole(kinds((1, B))[kind])[0].reshape(B, N, 2, G // 2)
    m, apart = Terms((shared,)), Terms((Dense(jnp.moveaxis(d, 2, 0)),))
    assert (m.count, m.shape) == (2, (N, G // 2))
    args = (random(B, 2), random(B, 2, G // 2, 3), random(B, N))
    args = (*args, random(B, N, G // 2), random(B, N, G // 2, 3), random(B, 3, 2))
    close_all(of_terms, (m, *args), evaluated(of_terms, apart, *args))


@pytest.mark.parametrize("kind", ["dense", "mixed", "composed mixed", "blocks"])
def test_columns_at_places(kind):
    matrix, places = kinds()[kind], np.array([3, -1, 0, 7, 5])
    close(matrix.columns_at(places).dense(), np.where(places >= 0, whole(matrix)[..., places], 0))


def test_columns_of_each_of_several_terms_as_one_matrix():
    places, whole_ = np.array([2, -1, 0]), kinds((1, B))["mixed"]
    terms = Terms((Shared(whole_, 2),))
    apart = np.asarray(terms.dense())
    close(terms.columns_at(places).dense(), np.where(places >= 0, apart[..., places], 0))


def test_blocks_of_rows_are_banded_if_all_are_and_one_block_has_its_own_form():
    parts = [banded("mixed").rows(0, 2), banded("mixed").rows(2, 3), banded("mixed").rows(3, N)]
    together = below_each_other(parts)
    assert isinstance(together, Banded)
    close(together.dense(), whole(banded("mixed")))
    dense = below_each_other([parts[0], Dense(parts[1].dense()), parts[2]])
    assert isinstance(dense, BlockRows)
    assert [type(dense.rows(*span)) for span in dense.spans] == [Banded, Dense, Banded]
    assert isinstance(dense.rows(1, N), BlockRows)
    close(dense.rows(1, N).dense(), whole(banded("mixed"))[:, 1:])


def test_like_terms_that_follow_one_another_are_one_group():
    parts = [kinds((1, B))[k] for k in ("dense", "dense", "mixed", "mixed", "dense")]
    groups = stacked(parts)
    assert [group.lead[0] for group in groups] == [2, 2, 1]
    close(Terms(groups).dense(), np.stack([whole(p)[0] for p in parts], axis=1))


def test_taking_by_static_indices():
    x = random(2, 12)
    for indices in ([3, 4, 5, -1, -1, 0], [11, 0, 7, 3, 1, 9, 2, 5, 4, -1, 6], list(range(12)), []):
        i = np.asarray(indices, int)
        close(take(x, i, axis=-1), np.where(i >= 0, np.asarray(x)[:, i], 0).reshape(2, len(i)))
    assert runs(np.array([3, 4, -1, -1, 0, 1, 9])) == [(3, 2), (-1, 2), (0, 2), (9, 1)]


def test_places_of_bands():
    for name in COLUMNS:
        m = banded(name)
        np.testing.assert_array_equal(
            places_of_bands(m.columns.array, G), np.any(whole(m) != 0, axis=0)
        )


def test_static_data_compares_by_value():
    assert Index([[1, 2]]) == Index(np.array([[1, 2]]))
    assert hash(Index([[1, 2]])) == hash(Index([[1, 2]]))
    assert Index([[1, 2]]) != Index([[2, 1]])
