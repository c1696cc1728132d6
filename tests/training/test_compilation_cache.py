"""The cache of compiled programs."""

from __future__ import annotations

import stat

import jax
import pytest

from kfrtrl_jax.training import command_line


@pytest.fixture(autouse=True)
def no_cache():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def kept(monkeypatch, home) -> str | None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    command_line._keep_compiled_programs()
    return jax.config.jax_compilation_cache_dir


def test_each_kind_of_processor_has_its_own_folder(monkeypatch, tmp_path):
    folder = tmp_path / "kfrtrl_jax" / command_line.processor_name()
    assert kept(monkeypatch, tmp_path) == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.iterdir()) == []
    assert command_line.processor_name() == command_line.processor_name()


def test_nothing_is_kept_where_nothing_can_be_written_or_it_is_turned_off(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    assert kept(monkeypatch, tmp_path / "file") is None
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert kept(monkeypatch, tmp_path) is None
    finally:
        jax.config.update("jax_enable_compilation_cache", True)


def test_a_folder_of_the_users_is_left_as_it_is(monkeypatch, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert kept(monkeypatch, tmp_path) == str(tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []
