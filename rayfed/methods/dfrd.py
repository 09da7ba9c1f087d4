"""DFRD: FedFTG's distillation on inputs where the ensemble is right and the student wrong, of a generator and its moving average."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rayfed.methods._bases.finetuned_average import FineTunedAverage


class DFRD(FineTunedAverage):
    """Luo et al. 2023, "DFRD: Data-Free Robustness Distillation for Heterogeneous Federated Learning" (NeurIPS, 2309.13546), for clients of
    one architecture.

    Clients and average as in FedFTG. With alpha_i^y = n_i^y / sum_j n_j^y, F = sum_i alpha_i^y f(x; w_i) (logits), x = G(z, y):
        G: min  CE(F, y) - eps KL(F || f(x; w)) + L_div,  eps = 1 where F is right and f(x; w) wrong, else 0   (fidelity, transferability)
        w: min  KL(F || f(x; w)),  x from G, and from a moving average of G's weights so that what was generated before is not forgotten.
    Here the average of G moves with each of its steps by `generator_ema`, and student steps take G and the average in turn; the paper moves
    it once a round and adds its loss with a weight [ours]. The loop, its diversity term and its other settings are FedFTG's.
    Sub-networks of unequal width, the paper's other half, are not built.
    `iterations: 0` is FedAvg to the bit. Down: w (P). Up: update (P), n_i^y (C ints). Kept at clients: nothing. At the server: w, G, its
    average and its Adam state; within a round the models of all its clients.
    """

    class Settings(FineTunedAverage.Settings):
        mix: Literal["prob", "logit"] = Field("logit", description="Experts mix as logits (paper) or as probabilities.")
        fidelity_of: Literal["ensemble", "each"] = Field(
            "ensemble",
            description="Who must recognise the drawn label: the mixed ensemble (paper), or each teacher by its weight.",
        )
        adversary: Literal["kl", "l1", "selective"] = Field(
            "selective",
            description="Disagreement: KL where the ensemble is right and the student wrong (paper); KL; weighted L1 of logits.",
        )
        generator_ema: float = Field(
            0.5, ge=0, lt=1, description="Decay of an averaged generator that also feeds the student; 0 none."
        )
