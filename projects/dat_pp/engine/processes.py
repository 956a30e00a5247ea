"""The processes of a run, as launchers number them in environment variables."""

import os

VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}
"""Launcher -> the variables that hold rank, number of processes, and rank on this machine."""


def world_size(launcher: str) -> int:
    """Return the number of processes of a run, also before its process group exists."""
    return int(os.environ.get(VARIABLES[launcher][1], 1)) if launcher in VARIABLES else 1


def is_first_process() -> bool:
    """Whether this is the first process of the run on this machine, under any launcher."""
    return all(os.environ.get(local_rank, '0') == '0' for *_, local_rank in VARIABLES.values())
