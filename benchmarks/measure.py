"""Measures seconds and peak memory, and names the machine."""

import ctypes
import gc
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Measurement(Generic[T]):
    """What a run returned, its wall-clock seconds, and the bytes in use at its peak beyond those in use before it."""

    result: T
    seconds: float
    peak_bytes: int | None


def measure(run: Callable[[], T], device: torch.device) -> Measurement[T]:
    """Calls `run` once. `peak_bytes` is None on a system that does not report it."""
    before = _restart_peak(device)
    _wait(device)
    started = time.perf_counter()
    result = run()
    _wait(device)
    seconds = time.perf_counter() - started
    return Measurement(result, seconds, None if before is None else max(_read_peak(device) - before, 0))


def describe_machine(device: torch.device) -> str:
    """The GPU's name, or the processor's and how many of its cores torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{name or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _restart_peak(device: torch.device) -> int | None:
    """Starts a new measurement of the peak and returns the bytes in use; None where the system cannot do so."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    _return_free_memory()
    try:
        (PROCESS / "clear_refs").write_text("5")  # Linux: the high-water mark falls to what is resident now
    except OSError:
        return None
    return _read_status("VmRSS")


def _return_free_memory() -> None:
    """
    Gives memory that earlier runs freed back to the system.

    malloc keeps it otherwise, and a run that uses it again would seem to take none.
    """
    gc.collect()
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _read_peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _read_status("VmHWM")


def _read_status(name: str) -> int:
    """A size in bytes from /proc/self/status, which gives it in KiB."""
    lines = (PROCESS / "status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
