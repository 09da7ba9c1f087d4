"""How the universal model is distilled (for DisUE and methods with the same settings).

distillation: iterations of a D-phase; distillation:temperature: of the softened predictions; distillation:losses: weights of
the generator's terms, for --search random or optuna; distillation:mix: share of the distilled model in the broadcast.
"""

from __future__ import annotations

from ray import tune

space = {"method.iterations": tune.grid_search([5, 20, 80])}
temperature = {"method.tau": tune.grid_search([1.0, 2.0, 4.0])}
losses = {
    "method.fidelity": tune.uniform(0.0, 2.0),
    "method.adversarial": tune.uniform(0.0, 2.0),
    "method.diversity": tune.uniform(0.0, 2.0),
}
mix = {"method.distill_mix": tune.grid_search([0.0, 0.5, 1.0])}
