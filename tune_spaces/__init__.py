"""Ray Tune search spaces of rayfed, one file each; `tune_spaces.sweep` runs them."""
