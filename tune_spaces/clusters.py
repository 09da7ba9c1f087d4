"""How many clusters, and which clusterer finds them.

clusters: the number K; clusters:clusterer: the kind (for methods with a setting `clusterer`); clusters:both: K for each that takes one.
"""

from __future__ import annotations

from ray import tune

space = {"method.clusters": tune.grid_search([2, 3, 5])}
clusterer = {"method.clusterer": tune.grid_search(["agglomerative", "kmeans", "bipartition"])}
both = {**space, "method.clusterer": tune.grid_search(["agglomerative", "kmeans"])}
