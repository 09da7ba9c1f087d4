"""NVFlare's simulator on the same plan: a site for each of a round's clients, all of them in memory (with fewer
threads it swaps processes in every round), the global model scored by the server.

python nvflare_side.py PLAN OUT
"""

import sys

import numpy as np
from nvflare.job_config.api import FedJob
from nvflare_parts import Planned, Site

if __name__ == "__main__":
    sites = len(np.load(f"{sys.argv[1]}/plan.npz")["clients"][0])
    job = FedJob(name="planned", min_clients=sites)
    job.to_server(Planned(sys.argv[1], sys.argv[2]))
    job.to_clients(Site(sys.argv[1]), tasks=["*"])
    job.simulator_run(f"{sys.argv[2]}/work", n_clients=sites, threads=sites)
