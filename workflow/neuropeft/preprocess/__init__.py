"""From a raw T1-weighted scan to a z-scored volume on the MNI152 grid, one module per step."""
