"""The data-free distillation loop (FedFTG, Zhang et al. CVPR 2022, lifted from clients to experts of any kind), and the
same loop on a public probe set.

The papers (DisUE, FedFTG) generate images. For texts, where an image's pixels would be words, the generator makes sequences of
word embeddings, `inputs: embeddings`, which enter the model past its table of words; that is ours, and so is the probe set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from pydantic import Field

from rayfed import keys, optimizers, tree
from rayfed.config.schema import Need, Section
from rayfed.distill import ensemble, statistics
from rayfed.distill import generator as gen
from rayfed.errors import ConfigError
from rayfed.lazy import F, torch
from rayfed.models import folder
from rayfed.task import needs_classes

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.task import Task
    from rayfed.tree import Tree


LOGS = {
    "distill/fidelity": (
        "cross-entropy of the experts on generated inputs against their labels, last generator step",
        "nats",
    ),
    "distill/adversarial": (
        "minus the disagreement of student and experts there, by `adversary`",
        "nats; of l1 logits",
    ),
    "distill/diversity": (
        "exp(-mean over pairs of distance of noise times distance of inputs)",
        "1 = all inputs equal",
    ),
    "distill/student": ("loss of the student against the experts, last student step", "nats"),
}


class DataFree(Section):
    """Settings of the loop. Defaults are the desk-scale ones of the DisUE card, but for `student_lr`; FedFTG's code has 10, 1, 5
    iterations.

    The student's loss is a mean over examples and classes, as in FedFTG's code: its gradient is 1 / C of a KL divergence's.
    """

    needs: ClassVar = {
        **dict.fromkeys(
            (
                "generator_steps", "generator_lr", "noise", "mix", "fidelity", "fidelity_of", "adversarial", "adversary",
                "diversity", "cross_entropy",
            ),
            (Need("inputs", ("generator", "embeddings")),),
        ),
        "length": (Need("inputs", ("embeddings",)),),
        "sampler": (Need("inputs", ("generator", "embeddings")),),
        "rho": (Need("inputs", ("generator", "embeddings")), Need("sampler", ("pooled",))),
        "generator_ema": (Need("inputs", ("generator", "embeddings")), Need("student_steps", (0, 1), but=True)),
    }  # fmt: skip

    iterations: int = Field(
        20, ge=0, description="Outer iterations per round, I_out; 0 leaves the student as it starts."
    )
    inputs: str = "generator"  # each method says which it has
    length: int = Field(8, ge=1, description="Word embeddings of a generated text (inputs: embeddings).")
    classes: Literal["all", "shared"] = Field(
        "all", description="Labels that are drawn: of all classes seen, or of those that several experts own (ours)."
    )
    generator_steps: int = Field(1, ge=0, description="Generator steps per iteration, I_g.")
    student_steps: int = Field(5, ge=0, description="Student steps per iteration, I_s.")
    batch: int = Field(64, ge=1, description="Generated examples per step, B_g.")
    gamma: float = Field(
        1.0, ge=0, description="Exponent of class counts in the experts' weights; 1 by counts, 0 one voice each."
    )
    sampler: Literal["pooled", "group"] = Field(
        "pooled", description="Labels from pooled class counts, or an expert first."
    )
    rho: float = Field(1.0, ge=0, description="Exponent of pooled class counts in the label sampler; 0 uniform.")
    tau: float = Field(2.0, gt=0, description="Distillation temperature.")
    mix: Literal["prob", "logit"] = Field("prob", description="Experts mix as probabilities or as logits.")
    fidelity: float = Field(1.0, ge=0, description="Weight of cross-entropy of the ensemble against the drawn label.")
    fidelity_of: Literal["ensemble", "each"] = Field(
        "ensemble", description="Who must recognise the drawn label: the mixed ensemble, or each expert by its weight."
    )
    adversarial: float = Field(1.0, ge=0, description="Weight of the disagreement of student and ensemble.")
    adversary: Literal["kl", "l1", "selective"] = Field(
        "kl",
        description="Disagreement: KL; FedFTG's weighted L1; KL only where the ensemble is right and the student wrong (DFRD).",
    )
    diversity: float = Field(1.0, ge=0, description="Weight of the diversity term.")
    cross_entropy: float = Field(
        0.0, ge=0, description="Weight of cross-entropy against the drawn label in the student's loss."
    )
    noise: int = Field(32, ge=1, description="Noise size, d_z.")
    generator_lr: float = Field(1e-3, gt=0, description="Adam's rate for the generator.")
    student_lr: float = Field(
        0.1, gt=0, description="SGD's rate for the student, whose loss is the mean over examples and classes."
    )
    student_decay: float = Field(1.0, gt=0, le=1, description="Factor of the student's rate per round.")
    generator_ema: float = Field(
        0.0, ge=0, lt=1, description="Decay of an averaged generator that also feeds the student; 0 none."
    )


def check(s: DataFree, config: Config) -> list[str]:
    """Return what `Method.check` says of these settings."""
    if s.inputs == "probe" and not config.federation.public_rows:
        return ["federation.probe: 0 found, method.inputs: probe distils on a public set; allowed: a whole number >= 1"]
    if s.inputs == "embeddings" and config.task.model.name.startswith("hf:"):
        with contextlib.suppress(ConfigError):  # a folder that is none is the model check's to report
            for most, of in folder.limits(config):
                if s.length > most:
                    return [
                        f"method.length: {s.length} found, {config.task.model.name} takes at most {most} tokens{of}"
                    ]
    return []


def fits(s: DataFree, federation: Federation) -> list[str]:
    """Return what `Method.fits` says of these settings."""
    if s.iterations and (problems := needs_classes(federation, "its distillation weighs classes")):
        return problems
    if federation.kind == "text" and s.inputs == "generator" and s.iterations:
        allowed = _inputs_but(s, "generator", "client_generators")
        return [f"method.inputs: generator found, it makes images or features, not texts; allowed: {allowed}"]
    if federation.kind != "text" and s.inputs == "embeddings" and s.iterations:
        return [
            "method.inputs: embeddings found, they are of texts, which task.data does not hold; allowed: "
            + _inputs_but(s, "embeddings")
        ]
    return []


def _inputs_but(s: DataFree, *wrong: str) -> str:
    """Return the kinds of inputs that the method has besides some."""
    return ", ".join(kind for kind in get_args(type(s).model_fields["inputs"].annotation) if kind not in wrong)


def _generates(task: Task, s: DataFree) -> tuple[tuple[int, ...], Any, Any]:
    """Return (shape of what is generated, how, and a function of it that gives the model's inputs (B, ...)).

    Of embeddings each vector, standardised, gets the mean and the deviation of each dimension over the model's own table: they
    start, and stay, where words are. Diversity is read before that, in units of these deviations.
    """
    if s.inputs == "embeddings" and task.kind == "text":
        mean, deviation = task.word_spread
        return (s.length, len(mean)), gen.sequence, lambda u: mean + deviation * u
    return task.input_shape, gen.generate, lambda x: x


def init(task: Task, key: int, s: DataFree) -> Tree:
    """Return the part of the server state that is kept between rounds: generator, its Adam state, its average if asked for. Nothing
    where the inputs are not generated."""
    if s.inputs not in ("generator", "embeddings"):
        return {}
    g = gen.init(key, s.noise, task.classes, _generates(task, s)[0], dtype=task.dtype)
    return {"g": g, "adam": optimizers.adam().init(g), **({"ema": g} if s.generator_ema else {})}


def distill(
    task: Task,
    student: Tree,
    experts: ensemble.Experts,
    counts: Tensor,
    state: Tree,
    s: DataFree,
    key: int,
    round: int,
    probe: Tensor | None = None,
    match: tuple[Tree, statistics.Gaussians, float] | None = None,
) -> tuple[Tree, Tree, dict[str, float]]:
    """Run one round's D-phase; return (student, generator state, last losses by the names of LOGS without `distill/`).

    student: parameters; experts: K parameter trees, or what they answer; counts: (K, C) examples of each expert's classes.

    Per iteration: generator steps on L_fid + L_adv + L_div through frozen experts and student, then student steps on
    tau^2 KL(ensemble || student) / C with the generator frozen. Experts are only read. probe: (n, *input_shape), for
    `inputs: probe`. Without labels, each class's probability is mixed by its own weights (`ensemble.by_class`). match: a model,
    class Gaussians of its features, and the weight of the generator's loss on them (`statistics.mismatch`).
    """
    if s.classes == "shared":
        drawn = torch.where((counts > 0).sum(0) > 1, counts, torch.zeros_like(counts))
        if not bool(drawn.any()):
            return student, state, {}
    else:
        drawn = counts
    rng = keys.torch_generator(key)
    shape, generate, place = _generates(task, s)
    alpha = ensemble.class_weights(counts, s.gamma)
    answers = ensemble.answers(task.apply, experts)
    adam, lr = optimizers.adam(), _student_lr(task, s, round)
    losses: dict[str, float] = {}

    def draw() -> tuple[Tensor, Tensor]:
        y = ensemble.draw_labels(drawn, s.batch, rng, s.rho, s.sampler == "group")
        return y, torch.randn(s.batch, s.noise, generator=rng, dtype=task.dtype)

    def ensemble_of(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = answers(x)
        return ensemble.teacher(logits, alpha, y, s.mix, s.tau), logits

    def generator_loss(g: Tree, y: Tensor, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        made = generate(g, z, y, task.classes, shape)
        x = place(made)
        qbar, logits = ensemble_of(x, y)
        f = task.apply(student, x)
        parts = {
            "fidelity": ensemble.judged(logits, alpha, y) if s.fidelity_of == "each" else F.cross_entropy(qbar, y),
            "adversarial": _against(s, qbar, logits, f, alpha, y),
            "diversity": gen.diversity(z, made),
        }
        loss = sum(getattr(s, name) * part for name, part in parts.items())
        if match is not None:
            parts["moments"] = statistics.mismatch(task.features(match[0], x), y, match[1])
            loss = loss + match[2] * parts["moments"]
        return loss, parts

    def student_loss(theta: Tree, x: Tensor, y: Tensor, qbar: Tensor) -> Tensor:
        f = task.apply(theta, x)
        loss = ensemble.kl(qbar, f, s.tau).mean()
        return loss + s.cross_entropy * F.cross_entropy(f, y) if s.cross_entropy else loss

    step_generator = torch.func.grad(generator_loss, has_aux=True)
    step_student = torch.func.grad_and_value(student_loss)
    if probe is not None:
        step_probe = torch.func.grad_and_value(lambda theta, x, q: ensemble.kl(q, task.apply(theta, x), s.tau).mean())
        with torch.no_grad():
            target = ensemble.by_class(answers(probe), alpha, s.tau)
        for _ in range(s.iterations * s.student_steps):
            rows = torch.randint(len(probe), (s.batch,), generator=rng)
            grads, value = step_probe(student, probe[rows], target[rows])
            student, losses = tree.add(student, grads, -lr), {"student": float(value)}
        return student, state, losses
    for _ in range(s.iterations):
        for _ in range(s.generator_steps):
            grads, parts = step_generator(state["g"], *draw())
            g, moments = adam.update(grads, state["adam"], state["g"], s.generator_lr)
            ema = (
                {"ema": tree.add(tree.scale(state["ema"], s.generator_ema), g, 1 - s.generator_ema)}
                if s.generator_ema
                else {}
            )
            state = {"g": g, "adam": moments, **ema}
            losses = {n: float(v) for n, v in parts.items()}
        for i in range(s.student_steps):
            y, z = draw()
            source = state["ema"] if s.generator_ema and i % 2 else state["g"]
            x = place(generate(source, z, y, task.classes, shape))
            grads, value = step_student(student, x, y, ensemble_of(x, y)[0])
            student = tree.add(student, grads, -lr)
            losses["student"] = float(value)
    return student, state, losses


def distill_on_draws(
    task: Task,
    space: statistics.Space,
    student: Tree,
    experts: ensemble.Experts,
    counts: Tensor,
    of: statistics.Source,
    s: Any,
    key: int,
    round: int,
) -> tuple[Tree, dict[str, float]]:
    """Run one round's D-phase on draws from class Gaussians, or from clients' generators, in the place of a generator's inputs; return
    (student, last losses).

    Labels are drawn by the source's counts to the power rho, with experts as teachers among the classes that these have; what
    learns in `space` learns iterations x student_steps times, from the experts as in `distill`, or from the labels (`teacher: labels`).
    Arguments as in `distill`; experts that are told by what they answer answer inputs, the space of which it must be.
    """
    loss, held = None, of.counts
    if s.teacher == "experts":
        alpha = ensemble.class_weights(counts, s.gamma)
        if callable(experts):
            told = experts
            answers: Callable[[Tensor], Tensor] = lambda z: told(z.reshape(-1, *task.input_shape))  # noqa: E731
        else:
            answers = ensemble.answers(space.answer, [space.learns(e) for e in experts])
        held = of.counts * (counts.sum(0) > 0)

        def loss(learnt: Tree, z: Tensor, y: Tensor) -> Tensor:
            f = space.answer(learnt, z)
            qbar = ensemble.teacher(answers(z), alpha, y, s.mix, s.tau)
            against = ensemble.kl(qbar, f, s.tau).mean()
            return against + s.cross_entropy * F.cross_entropy(f, y) if s.cross_entropy else against

    made, last = statistics.refit(
        task, space, student, of, keys.torch_generator(key),
        steps=s.iterations * s.student_steps, lr=_student_lr(task, s, round), batch=s.batch, rho=s.rho, loss=loss, counts=held,
    )  # fmt: skip
    return made, {} if last is None else {"student": last}


def _student_lr(task: Task, s: Any, round: int) -> float:
    """Return the rate of a loss that is a mean over examples and classes, in terms of one that is a mean over examples."""
    return float(s.student_lr * s.student_decay ** (round - 1) / task.classes)


def _against(s: DataFree, qbar: Tensor, logits: Tensor, f: Tensor, alpha: Tensor, y: Tensor) -> Any:
    if s.adversary == "l1":
        return -(alpha[:, y].to(f.dtype)[..., None] * (f[None] - logits.detach()).abs()).sum(0).mean()
    apart = ensemble.kl(qbar, f, s.tau)
    if s.adversary == "selective":
        apart = apart * ((qbar.argmax(-1) == y) & (f.argmax(-1) != y)).to(f.dtype)
    return -apart.mean()
