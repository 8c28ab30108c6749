"""What trained cells say when they are asked more: other weights, changed scans, what they look at."""
