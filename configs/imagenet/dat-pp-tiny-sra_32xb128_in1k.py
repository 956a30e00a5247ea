# Ablation of DAT-T++: spatial-reduction attention in place of neighborhood attention.
_base_ = './dat-pp-tiny_32xb128_in1k.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, base=_base_.dat.arch, mixers=['PD', 'PDPD', 'PD' * 9, 'DD'])
    )
)
