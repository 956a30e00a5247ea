# Ours, after mmdet's recipe for Swin; DAT++ was never published with Mask2Former.
_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    '../mask2former_decay.py',
]
custom_imports = dict(imports=['dat_pp'], allow_failed_imports=False)

model = dict(backbone=dict(_delete_=True, type='DAT', drop_path_rate=0.3), init_cfg=None)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.custom_keys))

# Upstream also names the folders of panoptic labels, which instance segmentation does not need.
train_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='train2017/')))
val_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='val2017/')))
test_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='val2017/')))
