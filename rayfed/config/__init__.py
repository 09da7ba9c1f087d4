"""The experiment as settings: schema, reading and merging, problems, user code, ready configs."""
