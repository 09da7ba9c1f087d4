"""Data-free distillation at the server: a conditional generator, class-weighted ensembles of experts, the student."""
