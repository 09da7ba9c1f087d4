"""Ray Tune search spaces of rayfed; one file per space."""
