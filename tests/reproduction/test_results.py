"""What is read of a folder of results."""

import pytest

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.studies.reproduction import records, results
from tests.reproduction import invented


def test_what_is_not_there_is_left_out(tmp_path):
    assert results.read(tmp_path) == ({}, {}, {}, {}, [])
    record = invented.record("copy", invented.copy_trials())
    records.write(tmp_path / "reproduction" / "copy.json", record)
    found = results.read(tmp_path)
    assert found.records == {"copy": record}
    assert len(found.own["copy"]) == len(record["trials"])
    # Without the tables of the logs.
    assert found.public == {"copy": []}


@pytest.mark.parametrize("text", ["[", "{}", "[1]", '[{"cell": "gru"}]'])
def test_a_file_that_is_no_certificate_is_refused_by_name(tmp_path, text):
    (tmp_path / "fidelity_segments.json").write_text(text)
    with pytest.raises(ConfigError, match=r"fidelity_segments.json is not what `kfrtrl fidelity`"):
        results.read(tmp_path)
