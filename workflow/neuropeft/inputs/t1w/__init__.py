"""T1-weighted brain MRI: from a raw head to a z-scored volume on the MNI152 grid, one module per step."""
