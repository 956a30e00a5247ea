# Ablation of DAT-T++: windows, every second one shifted, in place of neighborhood attention.
_base_ = './dat-pp-tiny_32xb128_in1k.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True, base=_base_.dat.arch, mixers=['LD', 'LDSD', 'LDSD' * 4 + 'LD', 'DD']
        )
    )
)
