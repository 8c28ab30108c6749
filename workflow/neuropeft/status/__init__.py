"""Where a benchmark is: what is done, what is running, what failed, and how much is left."""
