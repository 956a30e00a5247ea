"""Compiles every kernel for an H100, which needs none: ``compile_kernels.py fp16``.

Arguments that are not sizes (which no kernel may be specialised on) are taken for pointers, so that
a size forgotten there does not compile.
"""

import importlib
import sys

from triton import compile as triton_compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import Autotuner

HALF = ('q', 'k', 'v', 'out', 'grad_out', 'grad_q', 'grad_logits')
KERNELS = {
    'deformable': (
        [
            'forward_kernel',
            'query_gradient_kernel',
            'sample_gradient_kernel',
            'table_gradient_kernel',
        ],
        HALF,
        dict(HAS_TABLE=True, STORE=True, BLOCK_T=64, BLOCK_Q=32),
    ),
    'neighborhood': (
        ['forward_kernel', 'query_gradient_kernel', 'key_gradient_kernel'],
        (*HALF, 'grad_k', 'grad_v'),
        dict(K=7, TILE=8, ENTRIES=256),
    ),
}


def main(dtype: str) -> None:
    """Compile the kernels for inputs of ``dtype``, a name of Triton's; print their names."""
    precision = 'ieee' if dtype == 'fp32' else 'tf32'
    for operator, (names, half, flags) in KERNELS.items():
        module = importlib.import_module(f'dat_pp.ops.{operator}.triton_kernels')
        for name in names:
            kernel = getattr(module, name)
            config = {}
            if isinstance(kernel, Autotuner):
                config = kernel.configs[0].all_kwargs()
                kernel = kernel.fn
            constants = dict(D=32, BLOCK_D=32, PRECISION=precision, **flags, **config)
            signature = {
                p.name: 'constexpr'
                if p.is_constexpr
                else 'i32'
                if p.do_not_specialize
                else f'*{dtype if p.name in half else "fp32"}'
                for p in kernel.params
            }
            constants = {n: constants[n] for n, kind in signature.items() if kind == 'constexpr'}
            options = {n: v for n, v in config.items() if n in ('num_warps', 'num_stages')}
            source = ASTSource(kernel, signature, constants)
            compiled = triton_compile(source, target=GPUTarget('cuda', 90, 32), options=options)
            assert compiled.asm['cubin']
            print(operator, name)


main(sys.argv[1])
