"""neuropeft: how to adapt a pretrained 3D vision transformer to a brain-MRI task, measured."""
