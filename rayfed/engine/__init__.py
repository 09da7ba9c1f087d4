"""How a run is executed: its rounds, evaluation, calls to workers and client states."""
