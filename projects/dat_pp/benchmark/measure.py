"""Run cases in turn and measure the time of every run and the peak memory of each case."""

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

OUT_OF_MEMORY = 'out of memory'
# What torch and the C++ library say on a CPU, where there is no exception of its own.
CPU_MESSAGES = ("can't allocate memory", 'not enough memory', 'bad_alloc', 'bad allocation')
SHARE_OF_MEMORY = 0.9
"""The share of the available memory that a case may take."""


@dataclass(frozen=True)
class Case:
    """Something to measure: ``run`` is timed, and ``clear`` is called after it, untimed."""

    name: str
    run: Callable[[], None]
    macs: int | None = None
    """MACs of one run in matrix products and convolutions, if they could be counted."""
    clear: Callable[[], None] = lambda: None


@dataclass
class Measurement:
    """Times and peak memory of one case; a case with an ``error`` is not run again."""

    times: list[float] = field(default_factory=list)
    peak: int | None = None
    error: str | None = None


def measure_interleaved(
    cases: Sequence[Case],
    repeat: int,
    device: torch.device,
    announce: Callable[[str], None] = lambda text: None,
) -> dict[str, Measurement]:
    """Run every case once for its memory, then ``repeat`` rounds of all cases for their times.

    Slow changes of the machine thus affect all cases alike. Each round begins with another case.
    """
    found = {case.name: Measurement() for case in cases}
    with limited_memory(device):
        for case in cases:
            announce(f'{case.name}, warm-up')
            with _drop_on_error(case, found[case.name]) as measurement:
                measurement.peak = peak_memory(case, device)
        for turn in range(repeat):
            first = turn % len(cases)
            for case in [*cases[first:], *cases[:first]]:
                announce(f'{case.name}, round {turn + 1} of {repeat}')
                if found[case.name].error is None:
                    with _drop_on_error(case, found[case.name]) as measurement:
                        measurement.times.append(seconds(case, device))
    return found


@contextlib.contextmanager
def _drop_on_error(case: Case, found: Measurement) -> Iterator[Measurement]:
    try:
        yield found
    except Exception as error:
        found.error = OUT_OF_MEMORY if is_out_of_memory(error) else message_of(error)
    finally:
        case.clear()
    if found.error:  # the error held on to the tensors until here
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in CPU_MESSAGES)


def seconds(case: Case, device: torch.device) -> float:
    """Time one run.

    torch.utils.benchmark would run the case more than once, to warm up.
    """
    synchronize(device)
    start = time.perf_counter()
    case.run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def peak_memory(case: Case, device: torch.device) -> int:
    """Peak memory of the tensors of one run in bytes, above what was allocated before it."""
    if device.type != 'cuda':
        return peak_of_tensors(case.run)
    case.run()  # compiles kernels and tries them out, which takes memory of its own
    case.clear()
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    case.run()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_of_tensors(run: Callable[[], object]) -> int:
    """Peak memory of the tensors that ``run`` allocates on the CPU, in bytes.

    Summed up from torch's own allocations, so it is exact and reproducible, whatever the system's
    allocator keeps. What a library allocates for itself within an operator is not counted.
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
    """Silence the process's stderr, to which the profiler writes lines of its own."""
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
    """On a CPU, limit the address space: torch raises before Linux would kill the process."""
    status, meminfo = Path('/proc/self/status'), Path('/proc/meminfo')
    if device.type == 'cuda' or not (status.exists() and meminfo.exists()):
        yield
        return
    import resource  # only Unix has it

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
    """The number in a line like ``VmSize:  1234 kB`` of a file in /proc."""
    for line in path.read_text(encoding='utf-8').splitlines():
        if line.startswith(f'{key}:'):
            return int(line.split()[1])
    raise ValueError(f'no {key} in {path}')
