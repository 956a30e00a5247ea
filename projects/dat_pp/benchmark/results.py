"""The results as they are kept: a row per case, and what the numbers depend on."""

import argparse
import datetime
import importlib.metadata
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .measure import Case, Measurement
from .operators import MATRIX_PRODUCT, MATRIX_SIZE
from .plan import Group, Plan


def header(args: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """The head of the JSON: when, where and how it was measured."""
    arguments = {name: value for name, value in vars(args).items() if name != 'out_dir'}
    return dict(
        date=datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
        machine=machine(plan.setting.device),
        versions=versions(),
        dtype=str(plan.setting.dtype).replace('torch.', ''),
        matrix_size=MATRIX_SIZE[plan.setting.device.type],
        arguments=arguments,
        complete=False,
        results=[],
    )


def rows(
    group: Group, cases: Sequence[Case], found: dict[str, Measurement]
) -> list[dict[str, Any]]:
    """Results of the cases of a group, in their order."""
    product = next(item for item in cases if item.name == MATRIX_PRODUCT)
    times = found[MATRIX_PRODUCT].times
    rate = product.macs / statistics.median(times) if product.macs and times else None
    return [row(group, item, found[item.name], rate) for item in cases]


def row(group: Group, case: Case, found: Measurement, rate: float | None) -> dict[str, Any]:
    """The result of one case, and the time that its MACs take at ``rate`` MACs per second."""
    median = quartiles = None
    if found.times and not found.error:
        median = statistics.median(found.times)
        # Of one number there are no quartiles.
        cuts = statistics.quantiles(found.times * 2 if len(found.times) == 1 else found.times,
                                    n=4, method='inclusive')  # fmt: skip
        quartiles = [cuts[0], cuts[2]]
    limit = case.macs / rate if case.macs and rate else None
    is_product = case.name == MATRIX_PRODUCT
    return dict(
        name=case.name,
        size=asdict(group.size),
        **{'pass': group.mode},
        stage=asdict(group.shapes) if group.shapes else None,
        times_s=found.times,
        median_s=median,
        quartiles_s=quartiles,
        images_per_s=group.size.batch / median if median and not is_product else None,
        peak_bytes=found.peak,
        macs=case.macs,
        macs_per_s=rate,
        limit_s=limit,
        time_over_limit=median / limit if median and limit else None,
        error=found.error,
    )


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on of the machine."""
    name, memory = platform.processor() or platform.machine(), None
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        models = [
            line
            for line in cpuinfo.read_text(encoding='utf-8').splitlines()
            if 'model name' in line
        ]
        name = models[0].partition(':')[2].strip() if models else name
    if hasattr(os, 'sysconf') and 'SC_PHYS_PAGES' in os.sysconf_names:
        memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    found = dict(cpu=name, memory_bytes=memory, threads=torch.get_num_threads())
    if device.type == 'cuda':
        found['gpu'] = torch.cuda.get_device_name(device)
        found['gpu_memory_bytes'] = torch.cuda.get_device_properties(device).total_memory
        found['tf32_convolutions'] = torch.backends.cudnn.allow_tf32
        found['tf32_matrix_products'] = torch.backends.cuda.matmul.allow_tf32
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter."""
    found = dict(python=platform.python_version(), torch=torch.__version__)
    for name in ('dat_pp', 'mmpretrain', 'onedl-mmpretrain', 'triton'):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
