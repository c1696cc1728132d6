"""What the numbers of a run depend on beside its config: data, precision, random numbers, versions.

It stands in the workdir. Where something that changes the numbers is another when the run is continued,
the run is refused, with what differs; of other changes a line is shown. The commit of the code and the
processor are noted for whoever reads the figures later.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from kfrtrl_jax.errors import WorkdirError
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training import workdir
from kfrtrl_jax.training.segments import About

FILE = "made_with.json"
COMMIT_VARIABLE = "KFRTRL_COMMIT"
_WORDS = {
    "precision": "the precision (jax_enable_x64)",
    "matmul_precision": "the precision of products (jax_default_matmul_precision)",
    "random_numbers": "the random number generator (jax_default_prng_impl)",
    "partitionable": "the form of the random numbers (jax_threefry_partitionable)",
}
_PACKAGES = ("kfrtrl_jax", "jax", "jaxlib", "optax", "numpy")


def data_of(config: Any, about: About) -> dict[str, str]:
    """The digests of what a run reads: the data of its task, and the parameters it starts from.

    Args:
      config: resolved.
      about: the run.
    """
    found = {configs.shown(config, "task"): about.data}
    return {**found, start_of(config): about.init_from} if about.init_from else found


def start_of(config: Any) -> str:
    """What a run starts from, in words."""
    return f"init_from {config.init_from}"


def now(data: Mapping[str, str]) -> dict[str, Any]:
    """What a run that starts in this process is made with.

    Args:
      data: digests of what runs read, see `data_of`.
    """
    return {
        "settings": settings(),
        "data": dict(data),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": jax.local_devices()[0].device_kind,
        "sittings": [{"commit": commit(), "processor": processor(), "cores": cores()}],
    }


def numbers(data: Mapping[str, str]) -> dict[str, Any]:
    """That of it on which the numbers depend, on any machine; with the commit of the code."""
    made = now(data)
    same = {name: made[name] for name in ("settings", "data", "versions")}
    return {**same, "commit": made["sittings"][0]["commit"]}


def commit() -> str:
    """The commit of the code, with "+" if files differ from it.

    Outside of a repository it is what KFRTRL_COMMIT says, as an image of a container may, or "".
    """
    # Installed inside somebody's repository, the code is not of that repository.
    if not _git("ls-files", Path(__file__).name):
        return os.environ.get(COMMIT_VARIABLE, "")
    return _git("describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+")


def _git(*arguments: str) -> str:
    try:
        found = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def cores() -> int:
    """The number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def settings() -> dict[str, Any]:
    """The settings of JAX that the numbers depend on."""
    config: Any = jax.config
    return {
        "precision": "float64" if config.jax_enable_x64 else "float32",
        "matmul_precision": str(config.jax_default_matmul_precision or "default"),
        "random_numbers": str(config.jax_default_prng_impl),
        "partitionable": bool(config.jax_threefry_partitionable),
    }


def apply(chosen: Mapping[str, Any]) -> None:
    """Sets what the numbers depend on as another process has it, see `settings`."""
    default = chosen["matmul_precision"]
    jax.config.update("jax_enable_x64", chosen["precision"] == "float64")
    jax.config.update("jax_default_matmul_precision", None if default == "default" else default)
    jax.config.update("jax_default_prng_impl", chosen["random_numbers"])
    jax.config.update("jax_threefry_partitionable", chosen["partitionable"])


def bind(folder: Path, data: Mapping[str, str]) -> list[str]:
    """Binds a workdir to what its runs are made with.

    Args:
      folder: a workdir that this process has locked.
      data: digests of what the runs read, "" for a generated task, see `data_of`.

    Returns:
      What has changed since without changing the numbers, and other things to know, a line each.

    Raises:
      WorkdirError: if something has changed that changes the numbers.
    """
    new, path = now({task: d for task, d in data.items() if d}), folder / FILE
    notes: list[str] = []
    if path.exists():
        try:
            old = workdir.read_document(path)
        except workdir.DamagedError as error:
            notes.append(f"{error}; moved to {workdir.set_aside(path)} and written anew")
        else:
            _refuse_others(folder, old, new)
            notes += _changes(old, new)
            new["data"] = {**old["data"], **new["data"]}
            before = old.get("sittings", [])
            new["sittings"] = before + [own for own in new["sittings"] if own not in before]
    workdir.write_document(path, new)
    return notes


def _refuse_others(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for task, digest in new["data"].items():
        if old["data"].get(task, digest) != digest:
            raise WorkdirError(
                f"workdir {folder} was made with other data: what {task} reads has changed since; put "
                f"the data back as it was, or choose another --workdir"
            )
    for name, value in new["settings"].items():
        before = old["settings"].get(name)
        if before != value:
            raise WorkdirError(
                f"workdir {folder} was made with other numbers: {_WORDS[name]} was {before} and is "
                f"{value}; set it back, or choose another --workdir"
            )


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Changes that may change the rounding of numbers but not what is computed."""
    changed = [
        f"{name} {old['versions'].get(name, 'none')} is now {version}"
        for name, version in new["versions"].items()
        if old["versions"].get(name) != version
    ]
    if old["device"] != new["device"]:
        changed.append(f"the device {old['device']} is now {new['device']}")
    if not changed:
        return []
    return [f"{'; '.join(changed)}: numbers may differ from those before by rounding"]
