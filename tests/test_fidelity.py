import json

import pytest

from experiments.fidelity import estimator
from kfrtrl_jax import cells, estimators, fidelity
from kfrtrl_jax.errors import ConfigError


def test_rows_tell_exact_unbiased_and_biased_estimators_apart():
    rows = fidelity.certify(
        {"gru": cells.gru(input_size=2, hidden_size=3)},
        {
            "rtrl": estimators.rtrl(),
            "kf_rtrl": estimators.kf_rtrl(),
            "truncated": estimators.truncated(),
        },
        input_size=2,
        steps=6,
        draws=512,
    )
    exact, noisy, none = rows
    assert exact.bias_z == 0
    assert exact.cosine == pytest.approx(1)
    assert exact.relative_noise == pytest.approx(0, abs=1e-12)
    assert noisy.claims_unbiased
    assert 0 < noisy.bias_z < 4
    assert 0 < noisy.cosine < 1
    assert noisy.state_bytes < exact.state_bytes
    assert none.bias_z is None
    assert none.relative_bias == pytest.approx(1)
    assert json.loads(json.dumps([row._asdict() for row in rows]))[2]["bias_z"] is None
    assert "| gru | kf_rtrl | yes |" in fidelity.markdown(rows)


def test_estimators_are_named_with_their_arguments():
    assert estimator("ok(rank=3)").init is not None
    with pytest.raises(ConfigError, match="there is no estimator 'okk'"):
        estimator("okk")
    with pytest.raises(ConfigError, match="rank"):
        estimator("ok")
