"""What changes speed and last bits, nothing else: replay, kernels, timing, process settings."""
