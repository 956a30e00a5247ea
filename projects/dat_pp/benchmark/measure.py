"""Runs contestants in turn: the time of every run, and the peak of the memory."""

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler import profile

from ..engine.errors import message_of

try:
    import resource
except ImportError:  # not on Windows
    resource = None

OUT_OF_MEMORY = 'out of memory'
# What torch and the C++ library say on a CPU, where there is no exception of its own.
CPU_MESSAGES = ("can't allocate memory", 'not enough memory', 'bad_alloc', 'bad allocation')
SHARE_OF_MEMORY = 0.9
"""Of what is available, what a contestant may take."""


@dataclass(frozen=True)
class Contestant:
    """One of those that are measured in turn: ``run`` is timed, ``clear`` follows it untimed."""

    name: str
    run: Callable[[], None]
    products: int | None = None
    """Multiply-adds of one run in matrix products and convolutions, if they could be counted."""
    clear: Callable[[], None] = lambda: None


@dataclass
class Measurement:
    """What was found for one contestant; one with an ``error`` has left the rounds."""

    times: list[float] = field(default_factory=list)
    peak: int | None = None
    error: str | None = None


def compete(
    contestants: Sequence[Contestant],
    repeat: int,
    device: torch.device,
    announce: Callable[[str], None] = lambda text: None,
) -> dict[str, Measurement]:
    """Run every contestant once for its memory, then all in ``repeat`` rounds for their times.

    Slow changes of the machine thus meet all of them. Each round begins with another one.
    """
    found = {contestant.name: Measurement() for contestant in contestants}
    with limited_memory(device):
        for contestant in contestants:
            announce(f'{contestant.name}, warm-up')
            with _left_out_on_error(contestant, found[contestant.name]) as measurement:
                measurement.peak = peak_memory(contestant, device)
        for turn in range(repeat):
            first = turn % len(contestants)
            for contestant in [*contestants[first:], *contestants[:first]]:
                announce(f'{contestant.name}, round {turn + 1} of {repeat}')
                if found[contestant.name].error is None:
                    with _left_out_on_error(contestant, found[contestant.name]) as measurement:
                        measurement.times.append(seconds(contestant, device))
    return found


@contextlib.contextmanager
def _left_out_on_error(contestant: Contestant, found: Measurement) -> Iterator[Measurement]:
    try:
        yield found
    except Exception as error:
        found.error = OUT_OF_MEMORY if is_out_of_memory(error) else message_of(error)
    finally:
        contestant.clear()
    if found.error:  # the error held on to the tensors until here
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in CPU_MESSAGES)


def seconds(contestant: Contestant, device: torch.device) -> float:
    """Time of one run."""
    synchronize(device)
    start = time.perf_counter()
    contestant.run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def peak_memory(contestant: Contestant, device: torch.device) -> int:
    """The most bytes of tensors during one run, above what there was before it."""
    if device.type != 'cuda':
        return peak_of_tensors(contestant.run)
    contestant.run()  # compiles kernels and tries them out, which takes memory of its own
    contestant.clear()
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    contestant.run()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_of_tensors(run: Callable[[], object]) -> int:
    """The most bytes at a time of tensors that ``run`` makes on the CPU.

    Summed up from torch's own allocations, hence exact and the same every time, whatever the
    system's allocator keeps. What a library allocates for itself within an operator is not in it.
    """
    with quiet_stderr(), profile(use_device=None, profile_memory=True) as prof:
        run()
    events = [
        event
        for event in prof.kineto_results.events()
        if event.name() == '[memory]' and event.device_type() == DeviceType.CPU
    ]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Nothing on the process's stderr: the profiler writes lines there that mean nothing."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def limited_memory(device: torch.device) -> Iterator[None]:
    """On a CPU, where Linux would kill the process: let torch raise when memory runs out."""
    status, meminfo = Path('/proc/self/status'), Path('/proc/meminfo')
    if device.type == 'cuda' or resource is None or not (status.exists() and meminfo.exists()):
        yield
        return
    available = _kilobytes(meminfo, 'MemAvailable') * 1024
    limit = _kilobytes(status, 'VmSize') * 1024 + int(SHARE_OF_MEMORY * available)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit, *(other for other in (soft, hard) if other != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _kilobytes(path: Path, key: str) -> int:
    """A line like ``VmSize:  1234 kB`` of a file in /proc."""
    for line in path.read_text().splitlines():
        if line.startswith(f'{key}:'):
            return int(line.split()[1])
    raise ValueError(f'no {key} in {path}')
