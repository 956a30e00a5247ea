_base_ = __import__('dat_pp').config('mask-rcnn_dat-pp-t_fpn_32xb2-amp-ms-crop-1x_coco')
