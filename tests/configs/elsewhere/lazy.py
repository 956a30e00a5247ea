# ruff: noqa: F403, F405
from mmengine.config import read_base

with read_base():
    from dat_pp.configs.coco.mask_rcnn_dat_pp_t_fpn_32xb2_amp_ms_crop_1x_coco import *

model.update(dict(roi_head=dict(mask_head=dict(num_convs=2))))
