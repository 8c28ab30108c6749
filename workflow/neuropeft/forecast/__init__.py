"""What a grid will take, before anything runs: `python -m neuropeft estimate`."""
