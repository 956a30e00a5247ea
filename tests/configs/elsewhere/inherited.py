_base_ = 'dat_pp::coco/mask-rcnn_dat-pp-t_fpn_32xb2-amp-ms-crop-1x_coco.py'
