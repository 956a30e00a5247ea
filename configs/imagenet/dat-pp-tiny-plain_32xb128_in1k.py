# Ablation of DAT-T++: non-overlapped embedding, no LPU, plain FFN.
_base_ = './dat-pp-tiny_32xb128_in1k.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, base=_base_.dat.arch, overlapped=False, lpu=False, conv_ffn=False)
    )
)
