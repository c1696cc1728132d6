"""Tests run in float64, to compare with exact gradients; a test may turn it off."""

import atexit
import functools
import gc
import itertools
import mmap
import os
import pathlib
import shutil
import tempfile
import threading

import jaxlib


def _is_flag(name):
    """Whether this version of XLA, which stops at a flag that it does not have, has one.

    Its name is a string of the library then; names of former flags stand there as parts of others.
    """
    for library in pathlib.Path(jaxlib.__file__).parent.glob("libjax_common.*"):
        with open(library, "rb") as file:
            code = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return code.find(b"\0" + name.encode() + b"\0") >= 0
    return False


# Most of the time is spent compiling small programs: without a thread pool for each of them, and
# without the emitters of fast kernels, which take half of that time.
_FLAGS = {"xla_cpu_parallel_codegen_split_count": "1", "xla_cpu_use_fusion_emitters": "false"}
os.environ.setdefault(
    "XLA_FLAGS", " ".join(f"--{name}={value}" for name, value in _FLAGS.items() if _is_flag(name))
)
# Some tests are in float32; recent GPUs would leave 10 bits of the operands of its products. Processes
# that are started read it too: a run goes on only with the precision that it began with.
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "float32"

import jax
import pytest
from jax._src.interpreters import mlir

from kfrtrl_jax import linearization
from kfrtrl_jax._src.linearization import self_check

# Traces are many objects that live long: looking through all of them again and again takes a while.
gc.set_threshold(100_000, 20, 20)

jax.config.update("jax_enable_x64", True)
# Most programs run only once. Those that are built again in this process are kept until its end.
jax.config.update("jax_disable_most_optimizations", True)
_COMPILED = tempfile.mkdtemp(prefix="kfrtrl_jax_tests_")
atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)
# Nobody reads where an operation of a compiled program comes from.
jax.config.update("jax_traceback_in_locations_limit", 0)


class _Contexts(threading.local):
    """The contexts of MLIR in which JAX builds its programs.

    JAX makes one for each of the ten thousand programs, and a third of the time in which it builds
    them goes into that. Here a few in turn share one; not more, as it keeps what they were made of.
    """

    programs = 30

    def __init__(self, make):
        self.make, self.shared, self.left = make, None, 0

    def __call__(self):
        if _is_building():
            # In the context of the program around it, it would become a part of that.
            return self.make()
        if not self.left:
            self.shared, self.left = self.make(), self.programs
        self.left -= 1
        return self.shared


def _is_building():
    """Whether JAX is building a program in this thread."""
    try:
        return mlir.ir.Context.current is not None
    except ValueError:
        return False


if hasattr(mlir, "make_ir_context"):
    mlir.make_ir_context = _Contexts(mlir.make_ir_context)


# All that was traced and compiled is kept, which comes to gigabytes for all tests.
_TESTS_PER_CACHE = 300
_tests = itertools.count(1)


def pytest_runtest_teardown():
    if next(_tests) % _TESTS_PER_CACHE == 0:
        jax.clear_caches()


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "self_check: make_learner and runs check the cell, as they do by default"
    )


_checks = [(module, module.check) for module in (self_check, linearization)]


@pytest.fixture(autouse=True, scope="session")
def _no_self_check():
    """Skips the self-check of cells, as tests compare with exact gradients, except in marked tests.

    That of `make_learner` and that of runs; also in fixtures that tests share.
    """
    nothing = linearization.Check("float64", 0.0, {}, 0.0, 0.0, 1, 0.0)
    with pytest.MonkeyPatch.context() as patched:
        for module, check in _checks:
            patched.setattr(module, "check", functools.wraps(check)(lambda *_, **__: nothing))
        yield


@pytest.fixture(autouse=True)
def _self_check(request, monkeypatch):
    if "self_check" in request.keywords:
        for module, check in _checks:
            monkeypatch.setattr(module, "check", check)
