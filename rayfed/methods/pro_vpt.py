"""PRO-VPT: visual prompts that keep their number and change their blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import ANY, SCALAR, MethodSettings, Part, Phase, Visit, Wire, keys, mean, optimizers, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.over_adapter import OverAdapter
from rayfed.visits import once

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.visits import Batch

HIDDEN, RATES = 64, {"actor": 3e-4, "critic": 1e-3}  # of the policy's networks
CLIP, STEPS, GAMMA, ENTROPY, VALUE = 0.2, 60, 1.0, 0.01, 0.5  # of PPO
NEUTRAL = 1e-3  # what a prompt that moves is multiplied by
BATCH = 2  # rewards after which the policy learns


class PROVPT(OverAdapter):
    """Shang et al. 2025, "PRO-VPT: Distribution-Adaptive Visual Prompt Tuning via Prompt Relocation" (ICCV 2025, 2503.06901), and the
    authors' code.

    A network of B blocks has n learned tokens p_{b,i} in the input of each at the start (`adapter: vpt`), and B n in all rounds. From round
    `warmup` + 1 on, before the round's training:
      scores: I_{b,i} = dL/dg at g = 1, were p_{b,i} to stand as g p_{b,i}; that is <dL/dp, p>, over the training rows. Nothing moves.
        A block that normalises its input first, as ViTs do, sees p / sqrt(var p + eps), whose length in g is lost but for eps: scores
        are then smaller than slopes by eps / (var + eps), and of eps = 1e-12, as transformers' ViT has it, nothing but rounding.
        `scores: removal` is what they stand for, I = L - L without p_{b,i}, by one more forward pass for each prompt (ours).
      candidate: (b*, i*) = argmax I; without it the loss would be about I lower, so it is idle or in the way where I > 0.
      reward of the move before: r = L_before - L_now - I_before.
      destination: from `policy`. ppo: actor and critic, two tanh layers of 64, on the standardised sums of scores by block, the shares
        of the prompts without the candidate, and b* as one of B; one step of PPO after two rewards (60 passes,
        clip 0.2, entropy 0.01, value 0.5).
        thompson: Beta(1 + wins, 1 + losses) of each block, a win where L_now + I_before <= L_before. random: any block (a control).
      move: unless the destination is b*, p_{b*,i*} becomes 1e-3 p_{b*,i*} and the destination's last, which is nearly neutral where eps is
        above the square of that.
    With one client and one epoch a round it is the paper's algorithm, but that the optimizer starts anew in each round, as in every
    visit. With several, clients send scores and losses, the server averages both and moves a prompt for all alike (ours), so that tokens
    that are averaged always stand in the same place. PPO's returns are the sums of rewards to come within its two, less their mean and
    over their deviation [inferred].
    Down: the model, twice where scores are asked for. Up: B n scores and a loss, then the change. Kept at clients: nothing.
    At the server: the model, whose tokens per block tell where the prompts are; the policy, and the last move.
    """

    kinds = ("vpt",)

    class Settings(MethodSettings):
        scores: Literal["gate", "removal"] = Field(
            "gate",
            description="A prompt's score: the loss's slope in its gate (paper), or the loss less that without it.",
        )
        policy: Literal["ppo", "thompson", "random"] = Field("ppo", description="Who chooses a prompt's next block.")
        warmup: int = Field(1, ge=0, description="Rounds before the first move; as many as all rounds: VPT-deep.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(ANY, note="params, tokens as they stand")},
        up={
            "scores": Part(ANY, note="of each block's tokens"),
            "loss": Part(SCALAR),
            "delta": Part(ANY, update=True),
        },
        server={"model": Part(ANY), "policy": Part(ANY), "last": Part(ANY, note="the last move, and rewards so far")},
    )
    logs: ClassVar[Any] = {
        "prompts/moved": ("whether a prompt went to another block", "0 or 1"),
        "prompts/most": ("prompts in the fullest block", "prompts"),
    }
    no_privacy = "scores are read from rows without noise"

    def check(self, config: Config) -> list[str]:
        out = super().check(config)
        if config.adapter.kind == "vpt" and not config.adapter.deep:
            out.append(
                "adapter.deep: false found, allowed with method.name: pro_vpt: true; prompts go from block to block"
            )
        return out

    def init(self, task: Task, key: int) -> Tree:
        blocks = len(names(task))
        policy: dict[str, Any] = {"wins": torch.zeros(2, blocks, dtype=torch.float64)}  # and losses
        if self.settings.policy == "ppo":
            rng = keys.numpy(keys.key(key, 0, -1, "policy"))
            nets = {"actor": network(3 * blocks, blocks, rng), "critic": network(3 * blocks, 1, rng)}
            policy = {**nets, **{f"adam_{n}": optimizers.adam().init(p) for n, p in nets.items()}}
        return {"model": task.init_params(key), "policy": policy, "last": nothing_yet(blocks)}

    @visit
    def score(self, task: Task) -> Visit:
        """Measure loss and scores; nothing is trained."""
        prompts, removal = names(task), self.settings.scores == "removal"

        def begin(client: ClientContext) -> Tree:
            model = client.shared["model"]
            zero = torch.zeros((), dtype=task.dtype, device=task.device)
            return {
                "model": model,
                "sum": {n: torch.zeros_like(model[n][:, 0]) for n in prompts},
                "loss": zero,
                "n": zero,
            }

        def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            model, w = carry["model"], batch["w"]
            tokens = {n: model[n] for n in prompts}

            def total(tokens: Tree) -> Tensor:
                return (task.loss({**model, **tokens}, batch) * w).sum()

            if removal:
                loss = total(tokens)
                scores = {n: torch.zeros_like(p[:, 0]) for n, p in tokens.items()}
                for n, p in tokens.items():
                    if len(p):
                        scores[n] = torch.stack([loss - total({**tokens, n: without(p, i)}) for i in range(len(p))])
            else:
                slopes, loss = torch.func.grad_and_value(total)(tokens)
                scores = {n: (slopes[n] * p).sum(-1) for n, p in tokens.items()}
            return {
                **carry,
                "sum": tree.add(carry["sum"], scores),
                "loss": carry["loss"] + loss,
                "n": carry["n"] + w.sum(),
            }

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            n = carry["n"].clamp(min=1)
            return {"scores": tree.scale(carry["sum"], 1 / n), "loss": carry["loss"] / n}, client.own

        return Visit(begin, [Phase(once(), step, counts=False)], end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        clients, now = fed.sample(), state
        if fed.round > self.settings.warmup:
            folds = [mean("scores"), mean("loss")]
            seen = fed.ask(self.score, clients, shared={"model": state["model"]}, fold=folds)
            if seen.ids:
                now = self.relocated(state, seen.folded["scores"], float(seen.folded["loss"]), fed, names(task))
        got = fed.ask(self.train, clients, shared={"model": now["model"]}, fold=mean("delta"))
        if got.ids:
            now = {**now, "model": tree.add(now["model"], got.folded["delta"])}
        fed.log("prompts/most", max(len(now["model"][n]) for n in names(task)))
        return now

    def relocated(self, state: Tree, scores: Tree, loss: float, fed: Fed, prompts: list[str]) -> Tree:
        """Return the state after the last move's reward and this round's move. scores: {block's name: of its tokens}; loss: L_now."""
        policy, last = rewarded(state["policy"], state["last"], loss)
        block, place, most = candidate([scores[n] for n in prompts])
        if most <= 0:
            fed.log("prompts/moved", 0)
            return {**state, "policy": policy, "last": last}
        seen = situation([scores[n] for n in prompts], block)
        rng = keys.numpy(fed.key("destination"))
        to, likely = block, 0.0
        if "actor" in policy:
            chances = torch.log_softmax(answer(policy["actor"], seen), -1)
            to = min(int((chances.exp().cumsum(0) < rng.random()).sum()), len(prompts) - 1)
            likely = float(chances[to])
        elif self.settings.policy == "thompson":
            to = int(rng.beta(*(1 + policy["wins"].numpy())).argmax())
        else:
            to = int(rng.integers(len(prompts)))
        fed.log("prompts/moved", float(to != block))
        pending = torch.tensor([1.0, loss, most, to, likely], dtype=torch.float64)
        model = moved(state["model"], prompts[block], place, prompts[to])
        return {"model": model, "policy": policy, "last": {**last, "pending": pending, "seen": seen}}


def names(task: Task) -> list[str]:
    """Return the names of the blocks' tokens, in the blocks' order."""
    return [n for n in task.params_like if n.endswith(".vpt.tokens")]


def candidate(scores: list[Tensor]) -> tuple[int, int, float]:
    """Return (block, place in it, score) of the prompt with the largest score, the first one of equal ones; scores: of each block's
    prompts."""
    flat = torch.cat(scores)
    at = int(flat.argmax())
    block = next(b for b in range(len(scores)) if at < sum(map(len, scores[: b + 1])))
    return block, at - sum(map(len, scores[:block])), float(flat[at])


def without(tokens: Tensor, place: int) -> Tensor:
    """Return tokens (n, d) without one of them."""
    return torch.cat([tokens[:place], tokens[place + 1 :]])


def moved(model: Tree, block: str, place: int, to: str) -> Tree:
    """Return the model with one prompt of a block, nearly neutral, as the last of another one's; as it is where both are the same."""
    if to == block:
        return model
    here = model[block]
    return {**model, block: without(here, place), to: torch.cat([model[to], NEUTRAL * here[place : place + 1]])}


def situation(scores: list[Tensor], block: int) -> Tensor:
    """Return what the policy sees, (3 B,): standardised sums of scores, shares of the prompts without the candidate, its block as one of
    B."""
    sums = torch.stack([s.to("cpu", torch.float64).sum() for s in scores])
    counts = torch.tensor([len(s) - (b == block) for b, s in enumerate(scores)], dtype=torch.float64)
    one = torch.zeros(len(scores), dtype=torch.float64)
    one[block] = 1
    spread = (sums - sums.mean()) / (sums.std(correction=0) + 1e-8)
    return torch.cat([spread, counts / counts.sum().clamp(min=1), one])


# -- the policy ----------------------------------------------------------------------------------------------------------


def nothing_yet(blocks: int) -> Tree:
    """Return the last move before there is one: `pending` (whether it waits, L, I, where to, log chance), what was seen, and of moves that
    have their reward what was seen, done, how likely that was, and what it gave."""
    none = torch.zeros(0, dtype=torch.float64)
    return {
        "pending": torch.zeros(5, dtype=torch.float64), "seen": torch.zeros(3 * blocks, dtype=torch.float64),
        "states": torch.zeros(0, 3 * blocks, dtype=torch.float64), "done": none, "likely": none, "rewards": none,
    }  # fmt: skip


def rewarded(policy: Tree, last: Tree, loss: float) -> tuple[Tree, Tree]:
    """Return (policy, last move) once the loss after the move is known."""
    waits, before, predicted, to, likely = last["pending"].tolist()
    if not waits:
        return policy, last
    last = {**last, "pending": torch.zeros_like(last["pending"])}
    if "actor" not in policy:
        wins = policy["wins"].clone()
        wins[0 if loss + predicted <= before else 1, int(to)] += 1
        return {"wins": wins}, last
    more = {"done": to, "likely": likely, "rewards": before - loss - predicted}
    last |= {n: torch.cat([last[n], torch.tensor([x], dtype=torch.float64)]) for n, x in more.items()}
    last["states"] = torch.cat([last["states"], last["seen"][None]])
    if len(last["rewards"]) < BATCH:
        return policy, last
    return learned(policy, last), nothing_yet(len(last["seen"]) // 3)


def network(inputs: int, outputs: int, rng: Any) -> Tree:
    """Return a network of two hidden layers, drawn as torch draws linear ones."""
    sizes = [(HIDDEN, inputs), (HIDDEN, HIDDEN), (outputs, HIDDEN)]
    made = {}
    for i, (m, n) in enumerate(sizes):
        made[f"{i}.weight"] = torch.as_tensor(rng.uniform(-(n**-0.5), n**-0.5, (m, n)))
        made[f"{i}.bias"] = torch.as_tensor(rng.uniform(-(n**-0.5), n**-0.5, m))
    return made


def answer(net: Tree, x: Tensor) -> Tensor:
    """Return what a network gives of inputs (.., n), (.., m)."""
    for i in range(3):
        x = torch.nn.functional.linear(x, net[f"{i}.weight"], net[f"{i}.bias"])
        x = torch.tanh(x) if i < 2 else x
    return x


def objective(nets: Tree, old: Tree, returns: Tensor, advantage: Tensor) -> Tensor:
    """Return PPO's loss of some moves (Schulman et al. 2017, 1707.06347, equation 9, less its gain), 0-d."""
    chances = torch.log_softmax(answer(nets["actor"], old["states"]), -1)
    ratio = (chances.gather(1, old["done"].long()[:, None])[:, 0] - old["likely"]).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
    value = (answer(nets["critic"], old["states"])[:, 0] - returns).square().mean()
    entropy = -(chances.exp() * chances).sum(-1)
    return (-gain - ENTROPY * entropy).mean() + VALUE * value


def learned(policy: Tree, last: Tree) -> Tree:
    """Return the policy after its passes over the moves that have their reward."""
    rewards = last["rewards"].tolist()
    sums = [sum(GAMMA ** (j - i) * r for j, r in enumerate(rewards) if j >= i) for i in range(len(rewards))]
    returns = torch.tensor(sums, dtype=torch.float64)
    returns = (returns - returns.mean()) / (returns.std() + 1e-7)
    nets = {n: policy[n] for n in RATES}
    states = {n: policy[f"adam_{n}"] for n in RATES}
    advantage = returns - answer(nets["critic"], last["states"])[:, 0]
    for _ in range(STEPS):
        slopes = torch.func.grad(objective)(nets, last, returns, advantage)
        for n, rate in RATES.items():
            nets[n], states[n] = optimizers.adam().update(slopes[n], states[n], nets[n], rate)
    return {**nets, **{f"adam_{n}": s for n, s in states.items()}}
