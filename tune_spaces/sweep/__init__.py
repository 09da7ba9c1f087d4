"""The sweep runner: from spaces and a config to points, trials on Ray Tune, and what came out."""
