"""Where a benchmark runs, and clocks that wait for the device."""

import argparse
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`: the GPU where there is one."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: str) -> str:
    threads = torch.get_num_threads()
    return torch.cuda.get_device_name() if device == "cuda" else f"{threads} CPU thread{'s' if threads > 1 else ''}"


def training_precision(device: str) -> torch.dtype:
    """bfloat16 on a GPU, float32 elsewhere."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def settle(device: str) -> None:
    """Returns when the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], object], device: str) -> float:
    """Seconds of one call."""
    settle(device)
    started = time.perf_counter()
    call()
    settle(device)
    return time.perf_counter() - started


def seconds_in_turn(calls: dict[str, Callable[[], object]], device: str, rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each call in every round, after some that warm up; the calls take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-warm_up, rounds):
        for name, call in calls.items():
            elapsed = timed(call, device)
            if number >= 0:
                seconds[name].append(elapsed)
    return seconds


def forget_peak(device: str) -> None:
    """Starts `peak_bytes` anew: importing libraries takes more for a moment than it keeps. On a CPU only Linux can."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR.exists():
        _CLEAR.write_text("5")  # proc(5): resets the peak of the resident set


def peak_bytes(device: str) -> int:
    """The most memory since `forget_peak`: the GPU's allocations, or the process's resident set."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if _STATUS.exists():  # what getrusage says is never reset, and begins at the parent's
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
