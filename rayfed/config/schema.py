"""The whole experiment as typed, validated settings: one file, every key with its meaning.

Strict: an unknown key is an error. Whether the parts that a config names exist, and fit one another, is preflight's to judge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_serializer,
    model_validator,
)

from rayfed.errors import nearest

TINY_PAIR = str(Path(__file__).with_name("ready") / "tiny-towers")


class Need(NamedTuple):
    """What a setting belongs to: setting `of` of the same section with one of these values, or with `but` with any other."""

    of: str
    values: tuple[Any, ...]
    but: bool = False

    def text(self) -> str:
        """Return it in words: "kind: step", "momentum other than 0"."""
        shown = " or ".join("null" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in self.values)
        return f"{self.of} other than {shown}" if self.but else f"{self.of}: {shown}"


class Section(BaseModel):
    """Base of all sections and of the parts' own settings: frozen, strict; numbers are finite, and true is none.

    needs: of settings that are read only with certain values of others, which; such a one is refused where nothing reads it
    (`rayfed.config.unread`).
    """

    needs: ClassVar[Mapping[str, tuple[Need, ...]]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _refuses(cls, value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except (ValueError, AssertionError):  # what pydantic makes sentences of
            raise
        except Exception as e:  # of a validator that has not thought of such a value
            raise ValueError(f"{value!r} found: {type(e).__name__}: {e}") from e

    @model_validator(mode="before")
    @classmethod
    def _no_truth(cls, value: Any) -> Any:
        fields = {f.alias or n: f for n, f in cls.model_fields.items()} if isinstance(value, Mapping) else {}
        wrong = [k for k, f in fields.items() if isinstance(value.get(k), bool) and {int, float} & _types(f.annotation)]
        if wrong:
            raise ValueError("\n".join(f"{k}: {value[k]} found, a number is needed" for k in wrong))
        return value


def _types(annotation: Any) -> set[Any]:
    """Return the plain types of a field, bool aside where it is one of them."""
    found = {annotation} if isinstance(annotation, type) else set()
    if not isinstance(annotation, type):
        found = set().union(*(_types(a) for a in get_args(annotation)))
    return set() if bool in found else found


class Chosen(Section):
    """A part of a registry with that part's own settings; short: the word that chooses it, alone."""

    word: ClassVar[str]
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return cls._fields_of(value)

    @classmethod
    def _fields_of(cls, value: Any) -> Any:
        """Return a section as it is written as values of the fields."""
        if isinstance(value, str):
            return {cls.word: value}
        if isinstance(value, Mapping) and cls.word in value:
            rest = {k: v for k, v in value.items() if k != cls.word}
            return {cls.word: value[cls.word], "options": rest}
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        chosen = {"type": "object", "properties": {cls.word: {"type": "string"}}, "required": [cls.word]}
        return {"anyOf": [{"type": "string"}, chosen]}

    @model_serializer
    def _plain(self) -> dict[str, Any]:
        return self._written()

    def _written(self) -> dict[str, Any]:
        """Return it as it is written, plain values."""
        return {self.word: getattr(self, self.word), **self.options}


class Named(Chosen):
    """A part chosen by name, with that part's own options: `digits`, or `{name: parquet:DIR, image: picture}`."""

    word: ClassVar[str] = "name"
    name: str


class Family(Named):
    """One model of several, and the share of the clients that have it."""

    share: float = Field(gt=0, lt=1, description="Share of the clients that have this model.")

    @classmethod
    def _fields_of(cls, value: Any) -> Any:
        found = super()._fields_of(value)
        if not (isinstance(found, Mapping) and "share" in found.get("options", {})):
            return found
        options = dict(found["options"])
        return {**found, "share": options.pop("share"), "options": options}

    def _written(self) -> dict[str, Any]:
        return {**super()._written(), "share": self.share}


class Model(Named):
    """The clients' model; or families, several models by name with the share of the clients that have each."""

    FAMILIES: ClassVar = "families"  # the name of a model that is several
    PAIR: ClassVar = (
        "two_tower"  # short for the folder of a pair, `pair`, by default the tiny one that comes with the package
    )

    families: dict[str, Family] = {}

    @classmethod
    def _fields_of(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value and all(isinstance(v, Mapping) for v in value.values()):
            return {"name": cls.FAMILIES, "families": value}
        found = super()._fields_of(value)
        if isinstance(found, Mapping) and found.get("name") == cls.PAIR:
            options = dict(found.get("options", {}))
            return {**found, "name": f"hf:{options.pop('pair', TINY_PAIR)}", "options": options}
        return found

    @model_validator(mode="after")
    def _shared(self) -> Model:
        shares = {n: f.share for n, f in self.families.items()}
        if len(shares) == 1:
            raise ValueError(f"one family found ({', '.join(shares)}), allowed: two or more, or the model itself")
        if wrong := [n for n in shares if not re.fullmatch(r"[A-Za-z]\w*", n)]:
            raise ValueError(f"{wrong[0]}: a family's name consists of letters and digits, the first one a letter")
        if shares and abs(math.fsum(shares.values()) - 1) > 1e-6:
            each = ", ".join(f"{n} {s:g}" for n, s in shares.items())
            raise ValueError(f"the families' shares sum to {math.fsum(shares.values()):g} ({each}), they must sum to 1")
        return self

    def _written(self) -> dict[str, Any]:
        return {n: f._written() for n, f in self.families.items()} or super()._written()

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        one = super().__get_pydantic_json_schema__(core, handler)
        family = {"type": "object", "properties": {"name": {"type": "string"}, "share": {"type": "number"}}}
        several = {
            "type": "object",
            "additionalProperties": {**family, "required": ["name", "share"]},
            "minProperties": 2,
        }
        return {"anyOf": [*one["anyOf"], several]}


class Kind(Chosen):
    """A part chosen by kind, with that part's own settings: `median`, or `{kind: krum, f: 2}`."""

    word: ClassVar[str] = "kind"
    kind: str


class ModelSplit(Section):
    after: tuple[str, ...] = Field(
        min_length=1,
        max_length=2,
        description="Layers behind which the network is cut, by the ends of their names: one, where the client ends; two, the server has "
        "what is between.",
    )
    transforms: tuple[Kind, ...] = Field(
        (),
        description="What is done to what crosses, in this order: quantise | noise | sketch | rotate; docs/split.md.",
    )


class TaskSection(Section):
    data: Named = Field(
        description="digits | parquet:DIR | hf:NAME_OR_PATH | synthetic:KIND | path/to/file.py:function"
    )
    model: Model = Field(
        description="linear | mlp | cnn | resnet | vit-tiny | two_tower | hf:NAME_OR_DIR | path/to/file.py:function; or families, "
        "several of them by a name of yours: {small: {name: mlp, share: 0.5}, large: {name: cnn, share: 0.5}}."
    )
    kind: Named = Field(
        Named(name="auto"),
        description="auto | classify | multilabel | regress | ... (rayfed tasks) | path/to/file.py:Class: what is learned, with that "
        "kind's own settings; auto: by what the data holds.",
    )
    split: ModelSplit | None = Field(
        None, description="Split learning: where the network is cut between client and server; docs/split.md."
    )
    normalise: Literal["none", "clients"] = Field(
        "none",
        description="clients: channels of images and columns of numbers get mean 0 and deviation 1 over the clients' training rows.",
    )
    dtype: Literal["float32", "float64", "bf16", "auto"] = Field(
        "float32",
        description="Type of parameters and inputs; bf16: frozen parameters and the forward pass in bfloat16, what is trained "
        "in float32 (for processors with bfloat16 units); auto: bf16 where a pretrained model is frozen, the processor has such "
        "units, and timing finds it clearly faster, else float32.",
    )


class Uniform(Section):
    kind: Literal["uniform"]


class Poisson(Section):
    kind: Literal["poisson"]


class Cyclic(Section):
    kind: Literal["cyclic"]


class Chances(Section):
    """What kinds have in common whose clients come by themselves, each with its own chance."""

    needs: ClassVar = {
        "alpha": (Need("chances", ("labels",)),),
        "least": (Need("chances", ("labels",)),),
        "chance": (Need("chances", ("equal", "labels")),),
    }

    chance: float = Field(0.5, gt=0, le=1, description="Mean chance that a client is available in a round.")
    chances: Literal["equal", "labels"] | list[float] = Field(
        "equal",
        description="The same for all; by labels, so that classes come and go with their clients; or a chance for each planted group.",
    )
    alpha: float = Field(
        0.1, gt=0, description="For labels: concentration of the classes' weights, one Dirichlet draw for all clients."
    )
    least: float = Field(0.02, gt=0, le=1, description="For labels: least chance of a client.")

    @field_validator("chances")
    @classmethod
    def _shares(cls, v: Any) -> Any:
        if isinstance(v, list) and (not v or not all(0 < p <= 1 for p in v)):
            raise ValueError(f"{v} found, allowed: equal, labels, or a number in (0, 1] for each planted group")
        return v


class Bernoulli(Chances):
    kind: Literal["bernoulli"]


class Markov(Chances):
    kind: Literal["markov"]
    switch: float = Field(
        0.05, gt=0, le=1, description="Chance per round that an absent client comes back; lower is longer stays."
    )


class Periodic(Chances):
    kind: Literal["periodic"]
    period: int = Field(
        20,
        ge=2,
        description="Rounds of a period, of which each client is there for its chance's share, at a phase of its own.",
    )


class Trace(Section):
    kind: Literal["trace"]
    file: str = Field(description="CSV with columns client, first, last: rounds in which a client is available.")
    assign: Literal["number", "random"] = Field(
        "number", description="Client i has the file's client i; or one of the file's at random, however many it has."
    )


Participation = Uniform | Poisson | Cyclic | Bernoulli | Markov | Periodic | Trace


class IID(Section):
    kind: Literal["iid"]
    min_examples: int = Field(2, ge=1, description="Least examples of a client.")


class Dirichlet(Section):
    kind: Literal["dirichlet"]
    alpha: float = Field(gt=0, description="Concentration: small is skewed, large is even.")
    over: Literal["clients", "labels"] = Field(
        "clients",
        description="A draw per class over the clients, or per client over the labels (Hsu et al. 2019; equal sizes).",
    )
    min_examples: int = Field(2, ge=1, description="Least examples of a client; reached by moving single examples.")


class Shards(Section):
    kind: Literal["shards"]
    per_client: int = Field(2, ge=1, description="Label-sorted shards per client (McMahan et al. 2017).")


class Natural(Section):
    kind: Literal["natural"]
    min_examples: int = Field(2, ge=1, description="Natural clients with fewer examples are left out.")


class Quantity(Section):
    kind: Literal["quantity"]
    alpha: float = Field(gt=0, description="Concentration of the clients' sizes: small is skewed, large is even.")
    min_examples: int = Field(2, ge=1, description="Least examples of a client; reached by moving single examples.")


class Domain(Section):
    kind: Literal["domain"]
    mixed: float = Field(0.0, ge=0, lt=1, description="Share of every domain's rows that is dealt over all clients.")
    min_examples: int = Field(2, ge=1, description="Least examples of a client.")


class Embedding(Section):
    needs: ClassVar = {"clusters": (Need("embedding", ("labels",), but=True),)}

    kind: Literal["embedding"]
    alpha: float = Field(gt=0, description="Concentration; a client's draw is Dir(alpha * the clusters' shares).")
    clusters: int = Field(10, ge=1, description="Clusters of embeddings (k-means).")
    embedding: Literal["task", "pca", "labels"] = Field(
        "task", description="Hidden layer of a small network trained on the task, inputs' PCA, or classes as clusters."
    )
    min_examples: int = Field(2, ge=1, description="Least examples of a client.")
    tries: int = Field(1000, ge=1, description="Draws until the sizes fit.")
    fallback: Literal["none", "columns"] = Field(
        "none",
        description="If no draw fits: an error, or every cluster shared out on its own (sizes then vary freely).",
    )


class LongTail(Section):
    kind: Literal["longtail"]
    alpha: float = Field(gt=0, description="Concentration of the label skew over clients, as in dirichlet.")
    imbalance: float = Field(100.0, ge=1, description="Rows of the first class over rows of the last.")
    test: Literal["balanced", "tail"] = Field("balanced", description="Pooled test rows: all, or cut to the same tail.")
    min_examples: int = Field(2, ge=1, description="Least examples of a client; reached by moving single examples.")


class Flwr(Section):
    kind: Literal["flwr"]
    partitioner: str = Field(
        description="Path of the class, e.g. flwr_datasets.partitioner.DirichletPartitioner; rows have label, client and domain."
    )
    options: dict[str, Any] = Field({}, description="Its arguments; num_partitions and seed are given.")

    @field_validator("partitioner")
    @classmethod
    def _path(cls, v: str) -> str:
        if "." not in v:
            raise ValueError(
                f"{v!r} found, allowed: the path of a class, flwr_datasets.partitioner.DirichletPartitioner"
            )
        return v


class Groups(Section):
    needs: ClassVar = {
        "count": (Need("kind", ("none",), but=True),),
        "shares": (Need("kind", ("none", "domain"), but=True),),
    }

    kind: Literal["none", "rotation", "label_permutation", "classes", "domain"] = Field(
        "none", description="Planted groups of clients."
    )
    count: int = Field(
        1, ge=1, description="Number of planted groups; under domain, that of the data, whatever is here."
    )
    sets: list[list[int]] | None = Field(
        None, description="For `classes`: the classes of each group; default: runs that overlap."
    )
    shares: list[float] | None = Field(
        None,
        description="Numbers to which the groups' clients, and with classes their rows, are in proportion; default: equal.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Groups:
        if self.kind == "domain" and self.count != 1:
            raise ValueError(f"count: {self.count} found, under domain the data decides; leave it out")
        if self.kind not in ("none", "domain") and "count" not in self.model_fields_set:
            raise ValueError(f"count: missing, how many groups of kind {self.kind} are there?")
        if self.kind == "rotation" and self.count > 4:
            raise ValueError(f"count: {self.count} found, rotations are 0, 90, 180 and 270 degrees: at most 4")
        if self.sets is not None and (self.kind != "classes" or len(self.sets) != self.count):
            raise ValueError(f"sets: belongs to kind classes and needs one list per group ({self.count})")
        if self.shares is not None and (len(self.shares) != self.count or min(self.shares) <= 0):
            raise ValueError(f"shares: {self.shares} found, needs one number above 0 per group ({self.count})")
        return self


class Holdout(Section):
    needs: ClassVar = dict.fromkeys(("fraction", "domain"), (Need("kind", ("clients",)),))

    kind: Literal["none", "clients"] = Field("none", description="Clients that never train.")
    fraction: float = Field(0.1, gt=0, lt=1, description="Share of `clients` held out.")
    domain: str | None = Field(
        None,
        description="Under partition natural: the held-out clients are those most of whose rows are of this domain.",
    )


class Split(Section):
    val: float = Field(0.0, ge=0, lt=1, description="Share of each client's examples for validation.")
    test: float = Field(0.25, ge=0, lt=1, description="Share of each client's examples for its own test.")
    tests: Literal["own", "others", "all"] = Field(
        "own",
        description="On whose test examples a client's served model is scored; others: on those of another client that takes part, of "
        "another planted group where there is one: a shift at test time; all: on everybody's. Validation examples stay its own.",
    )

    @model_validator(mode="after")
    def _leaves_some(self) -> Split:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test is {self.val + self.test:g}, it must leave something to train on (< 1)")
        return self


class Public(Section):
    needs: ClassVar = {n: (Need("rows", (0,), but=True),) for n in ("labels", "domain", "classes")}

    rows: int = Field(
        0, ge=0, description="Training rows set aside before any is dealt: known to the server and to all."
    )
    labels: bool = Field(False, description="Whether their labels are known too.")
    domain: str | None = Field(None, description="Of which domain they are; default: of any.")
    classes: Literal["any", "new"] = Field(
        "any", description="Of which classes they are: of any, or of those that no client has (`new_classes`)."
    )


class Stream(Section):
    needs: ClassVar = {
        **dict.fromkeys(("every", "tasks"), (Need("kind", ("none",), but=True),)),
        "share": (Need("kind", ("drift",)),),
    }

    kind: Literal["none", "permuted", "classes", "drift"] = Field(
        "none",
        description="Tasks one after another: inputs permuted, other classes, or labels permuted for more and more clients (drift).",
    )
    every: int = Field(20, ge=1, description="Rounds of a task; the last task stays.")
    tasks: int = Field(
        5, ge=2, description="Number of tasks; under drift, of concepts that a client goes through at most."
    )
    share: float = Field(1.0, gt=0, le=1, description="Share of the clients that drift on at each border.")


class Modalities(Section):
    needs: ClassVar = {"concentration": (Need("absent", (0.0,), but=True),)}

    owners: dict[str, float] = Field(
        {},
        description="Which modalities clients have, and in which proportions: {image: 1, text: 1, image+text: 2}; {}: all have all.",
    )
    absent: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of a client's modalities that a training row lacks, at random; each row keeps one.",
    )
    concentration: float | None = Field(
        None,
        gt=0,
        description="Clients' shares are Beta(absent c, (1 - absent) c), the more unequal the smaller c; null: all alike.",
    )
    absent_test: float = Field(0.0, ge=0, lt=1, description="The same of test rows, whose shares are all alike.")

    @field_validator("owners")
    @classmethod
    def _some(cls, v: Any) -> Any:
        wrong = [n for n, share in v.items() if share <= 0]
        if wrong:
            raise ValueError(f"{wrong[0]}: {v[wrong[0]]:g} found, allowed: a share > 0")
        return v


class FederationSection(Section):
    clients: int = Field(60, ge=1, description="Number of clients; under `natural`, so many ids drawn by seed.")
    per_round: int | float | None = Field(None, description="Clients per round: a number, a fraction, or null for all.")
    participation: Participation = Field(
        Uniform(kind="uniform"),
        discriminator="kind",
        description="Who can be asked in a round, and how they are drawn.",
    )
    select: Literal["random", "fastest", "fair", "oldest"] = Field(
        "random",
        description="Whom a round asks of those who are there: anybody; the fastest by `devices`; who had the fewest turns (fair); or "
        "whose last turn is the longest ago (oldest).",
    )
    partition: IID | Dirichlet | Shards | Natural | Quantity | Domain | Embedding | LongTail | Flwr = Field(
        IID(kind="iid"), discriminator="kind"
    )
    groups: Groups = Groups()
    new_classes: int | list[int | str] = Field(
        0,
        description="Classes of which no client has a row, for tests alone: the last so many, or these by number or name; "
        "evaluate.metrics: [base_to_new] scores them.",
    )
    holdout: Holdout = Holdout()
    split: Split = Split()
    public: Public = Public()
    modalities: Modalities = Modalities()
    probe: int = Field(0, ge=0, description="Rows of a public set without labels; short for `public.rows`.")
    stream: Stream = Stream()

    @field_validator("per_round")
    @classmethod
    def _amount(cls, v: Any) -> Any:
        if v is not None and (v <= 0 or (isinstance(v, float) and v > 1)):
            raise ValueError(f"{v} found, allowed: a whole number >= 1, a fraction in (0, 1], or null")
        return v

    @field_validator("new_classes")
    @classmethod
    def _new(cls, v: Any) -> Any:
        if (isinstance(v, int) and v < 0) or (isinstance(v, list) and (not v or len(set(map(str, v))) < len(v))):
            raise ValueError(f"{v} found, allowed: a whole number >= 0, or different classes")
        return v

    @property
    def public_rows(self) -> int:
        """Return how many training rows are public."""
        return self.probe or self.public.rows

    @model_validator(mode="after")
    def _unmixed(self) -> FederationSection:
        if self.probe and self.public.rows:
            raise ValueError(f"probe: {self.probe} found beside public.rows: {self.public.rows}; allowed: one of them")
        if self.groups.kind == "domain" and isinstance(self.partition, Domain) and self.partition.mixed:
            raise ValueError(
                f"partition.mixed: {self.partition.mixed:g} found, groups of kind domain keep clients in their domain: only 0"
            )
        return self


class Optimizer(Section):
    READY: ClassVar = ("sgd", "adam", "adamw")
    needs: ClassVar = {
        "options": (Need("name", READY, but=True),),
        "momentum": (Need("name", ("sgd",)),),
        "nesterov": (Need("name", ("sgd",)), Need("momentum", (0.0,), but=True)),
        "betas": (Need("name", ("adam", "adamw")),),
        "eps": (Need("name", ("adam", "adamw")),),
    }

    name: str = Field(
        "sgd", description="sgd | adam | adamw | the path of a class, torch.optim.RMSprop (one client at a time)."
    )
    lr: float = Field(0.1, gt=0, description="Local learning rate.")
    momentum: float = Field(0.0, ge=0, lt=1, description="SGD's momentum.")
    nesterov: bool = Field(False, description="Nesterov's form of momentum.")
    weight_decay: float = Field(0.0, ge=0, description="L2 (decoupled for adamw).")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's decay rates.")
    eps: float = Field(1e-8, gt=0, description="Adam's epsilon.")
    options: dict[str, Any] = Field({}, description="Further arguments of a class that is named by its path.")

    @field_validator("name")
    @classmethod
    def _known(cls, v: str) -> str:
        if "." not in v and v not in cls.READY:
            allowed = ", ".join(map(repr, cls.READY))
            raise ValueError(
                f"{v!r} found{nearest(v, cls.READY)}, allowed: {allowed}, or the path of a class, torch.optim.RMSprop"
            )
        return v

    @field_validator("betas")
    @classmethod
    def _rates(cls, v: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= b < 1 for b in v):
            raise ValueError(f"{list(v)} found, allowed: two numbers in [0, 1)")
        return v


class Schedule(Section):
    needs: ClassVar = {"gamma": (Need("kind", ("exponential", "step")),), "every": (Need("kind", ("step",)),)}

    kind: Literal["constant", "linear", "exponential", "step", "cosine"] = Field(
        "constant", description="Learning rate over rounds."
    )
    within: Literal["constant", "linear"] = Field(
        "constant",
        description="Learning rate within a visit: the round's, or from there to zero over the visit's steps.",
    )
    gamma: float = Field(0.99, gt=0, le=1, description="Factor per round (exponential) or per step (step).")
    every: int = Field(10, ge=1, description="Rounds between two steps (step).")
    warmup: int = Field(0, ge=0, description="Rounds of linear warm-up.")


class Work(Section):
    needs: ClassVar = {name: (Need("kind", ("uniform",)),) for name in ("stragglers", "least", "late")}

    kind: Literal["full", "uniform"] = Field(
        "full", description="How much of the local work is done: all, or by stragglers a share that is drawn uniformly."
    )
    stragglers: float = Field(
        0.9, ge=0, le=1, description="Share of the clients that are stragglers, drawn anew in every round."
    )
    least: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Least share of its steps that a straggler does, the first ones; at least one step.",
    )
    late: Literal["keep", "drop"] = Field(
        "keep", description="Stragglers' part of the work counts (FedProx), or they are left out of the round (FedAvg)."
    )


class ExamplePrivacy(Section):
    needs: ClassVar = {name: (Need("accountant", ("none",), but=True),) for name in ("epsilon", "delta")}

    norm: float = Field(gt=0, description="Largest norm of an example's gradient.")
    noise_multiplier: float = Field(
        ge=0.01, description="Standard deviation of the noise on a batch's sum of gradients over the norm."
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="Delta of (epsilon, delta) differential privacy of one example.")
    epsilon: float | None = Field(None, gt=0, description="Budget: a run that would spend more is refused.")
    accountant: Literal["exact", "none"] = Field(
        "exact",
        description="exact: closed form, an example being in one batch of an epoch; none: noise without an epsilon.",
    )


class Local(Section):
    epochs: int | None = Field(None, ge=1, description="Local epochs per visit (default 1 where `steps` is not set).")
    steps: int | None = Field(None, ge=1, description="Local steps per visit, instead of epochs.")
    batch_size: int = Field(16, ge=1, description="Examples per local step.")
    optimizer: Optimizer = Optimizer()
    clip: float | None = Field(
        None,
        gt=0,
        description="Largest norm of a step's gradient over all parameters; of the loss, before what a method adds to it.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target that is spread evenly over all classes, in training alone."
    )
    augment: tuple[Kind, ...] = Field(
        (),
        description="What is done to images in training steps: flip | crop | resized_crop | erase | colour | mixup (docs/data.md).",
    )
    schedule: Schedule = Schedule()
    work: Work = Work()
    privacy: ExamplePrivacy | None = Field(
        None, description="DP-SGD: each example's gradient is clipped, and their sum gets noise; docs/transforms.md."
    )
    buffers: Literal["average", "private", "frozen"] = Field(
        "average",
        description="What training writes in addition to parameters (BatchNorm's running statistics, counters): averaged with the model; "
        "kept by each client; or never written, normalising by what is stored.",
    )

    @model_validator(mode="after")
    def _one(self) -> Local:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are both set; choose one")
        return self


class Init(Section):
    from_: str | None = Field(None, alias="from", description="A run folder or a model folder to start from.")


class Whole(Section):
    kind: Literal["none", "full"] = "none"


class LoRA(Section):
    kind: Literal["lora"]
    rank: int | dict[int, float] = Field(
        8, description="Rank r of each layer's B A; or several, each with its share of the clients: {4: 0.5, 16: 0.5}."
    )
    alpha: float | None = Field(
        None, gt=0, description="Scale: alpha / rank times B A, each client by its own rank; default twice the rank."
    )
    rslora: bool = Field(False, description="Scale alpha / sqrt(rank) in place of alpha / rank (Kalajdzievski 2023).")
    targets: list[str] | None = Field(
        None, description="Layers by the end of their names; default: PEFT's for the model."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of A's inputs left out of a training step.")

    @field_validator("rank", mode="before")
    @classmethod
    def _ranks(cls, v: Any) -> Any:
        shares = v if isinstance(v, Mapping) else {v if isinstance(v, int | str) else str(v): 1.0}  # a list is no key
        plain = {int(r) if isinstance(r, str) and r.isdecimal() else r: s for r, s in shares.items()}
        if not shares or not all(isinstance(r, int) and not isinstance(r, bool) and r >= 1 for r in plain):
            found = v if not isinstance(v, Mapping) or not v else next(
                r for r in plain if not isinstance(r, int) or isinstance(r, bool) or r < 1
            )  # fmt: skip
            raise ValueError(
                f"{found!r} found, allowed: a whole number >= 1, or such numbers with their shares of the clients, "
                "{4: 0.5, 16: 0.5}"
            )
        if not isinstance(v, Mapping):
            return next(iter(plain))
        if len(plain) < len(shares):
            raise ValueError(f"{', '.join(map(repr, v))} found, a rank is given twice")
        for r, s in plain.items():
            if isinstance(s, bool) or not isinstance(s, int | float) or not 0 < s <= 1:
                raise ValueError(f"{s!r} found as the share of rank {r}, allowed: a number in (0, 1]")
        if abs(sum(plain.values()) - 1) > 1e-6:
            raise ValueError(f"the shares sum to {sum(plain.values()):g}, allowed: 1")
        return plain

    @property
    def shares(self) -> dict[int, float]:
        """Return rank -> share of the clients that have it."""
        return self.rank if isinstance(self.rank, dict) else {self.rank: 1.0}

    @property
    def largest(self) -> int:
        """Return the largest rank, which is that of the trained tree."""
        return max(self.shares)

    def strength(self, rank: int) -> float:
        """Return alpha of a client of that rank."""
        return 2 * rank if self.alpha is None else self.alpha

    def scale(self, rank: int) -> float:
        """Return what B A counts at a client of that rank: alpha / rank, or with `rslora` alpha / sqrt(rank)."""
        return self.strength(rank) / (rank**0.5 if self.rslora else rank)


class IA3(Section):
    kind: Literal["ia3"]
    targets: list[str] | None = Field(None, description="Scaled layers; default: PEFT's for the model.")
    feedforward: list[str] | None = Field(None, description="Those of them whose input is scaled, not their output.")


class Bias(Section):
    kind: Literal["bias"]


class Head(Section):
    kind: Literal["head"]


class Prompt(Section):
    kind: Literal["prompt"]
    tokens: int = Field(8, ge=1, description="Virtual tokens before every text (Lester et al. 2021).")
    init: Literal["random", "vocab", "text"] = Field(
        "random", description="Their start: N(0, 1), words drawn from the vocabulary, or those of `text`."
    )
    text: str | None = Field(
        None, min_length=1, description="For init text; its tokens are repeated or cut to `tokens`."
    )

    @model_validator(mode="after")
    def _fits(self) -> Prompt:
        if (self.init == "text") != (self.text is not None):
            raise ValueError(
                f"text: {self.text!r} found, init {self.init}; init: text needs it, and nothing else has it"
            )
        return self


class Prefix(Section):
    kind: Literal["prefix"]
    tokens: int = Field(
        8, ge=1, description="Virtual keys and values in every layer (Li and Liang 2021); decoders only."
    )


class Bottleneck(Section):
    kind: Literal["bottleneck"]
    size: int = Field(8, ge=1, description="Inner width of the residual bottleneck h + U relu(D h).")
    targets: list[str] | None = Field(
        None, description="Modules whose output is adapted, by the end of their names; default: every block."
    )


class SSF(Section):
    kind: Literal["ssf"]
    targets: list[str] | None = Field(
        None, description="Modules whose output is scaled and shifted; default: linear layers and normalisations."
    )


class VPT(Section):
    kind: Literal["vpt"]
    tokens: int | list[int] = Field(
        4,
        description="Visual prompts, tokens in addition to those of an image's patches; or a number for each block, from the first one.",
    )
    deep: bool = Field(True, description="Own prompts in every block, or only before the first.")

    @field_validator("tokens")
    @classmethod
    def _counts(cls, v: Any) -> Any:
        return visual_counts(v, 1)

    @model_validator(mode="after")
    def _fits(self) -> VPT:
        if isinstance(self.tokens, list) and not self.deep:
            raise ValueError(
                f"tokens: {self.tokens} found, with deep: false the first block alone has some: one number"
            )
        return self

    def counts(self, blocks: int) -> list[int]:
        """Return the number of tokens of each block that has some, from the first one."""
        return of_blocks(self.tokens, blocks if self.deep else 1)


def visual_counts(v: Any, least: int) -> Any:
    """Return a number of visual prompts, or one for each block, as it is; ValueError below `least`, or where all are 0."""
    if isinstance(v, list) and (not v or min(v) < 0 or not any(v)):
        raise ValueError(f"{v} found, allowed: a whole number >= 0 for each block, not all of them 0")
    if isinstance(v, int) and v < least:
        raise ValueError(f"{v} found, allowed: a whole number >= {least}, or one for each block")
    return v


def of_blocks(tokens: int | list[int], blocks: int) -> list[int]:
    """Return the number of tokens of each of so many blocks, as it is written."""
    return list(tokens) if isinstance(tokens, list) else [tokens] * blocks


class TowerPrompts(Section):
    needs: ClassVar = {"init": (Need("text", (0,), but=True),), "deep": (Need("image", (0,), but=True),)}

    kind: Literal["prompts"]
    text: int = Field(
        4,
        ge=0,
        description="Learned tokens before each class's name in the text tower (Zhou et al. 2022, CoOp); 0: none.",
    )
    image: int | list[int] = Field(
        0,
        description="Learned tokens in the image tower, or a number for each of its blocks (Jia et al. 2022); 0: none.",
    )
    deep: bool = Field(False, description="Own tokens in every block of the image tower, or only before the first.")
    init: str | None = Field(
        None,
        min_length=1,
        description="Words that the text tower's tokens start from, repeated or cut to them; null: N(0, 0.02^2).",
    )

    @field_validator("image")
    @classmethod
    def _counts(cls, v: Any) -> Any:
        return visual_counts(v, 0)

    @model_validator(mode="after")
    def _some(self) -> TowerPrompts:
        if not self.text and not self.image:
            raise ValueError("text: 0 and image: 0 found, one of the towers needs a token")
        if isinstance(self.image, list) and not self.deep:
            raise ValueError(f"image: {self.image} found, with deep: false the first block alone has some: one number")
        return self

    def counts(self, blocks: int) -> list[int]:
        """Return the number of tokens of each block of the image tower that has some; () for none."""
        return of_blocks(self.image, blocks if self.deep else 1) if self.image else []


Adapter = Whole | LoRA | IA3 | Bias | Head | Prompt | Prefix | Bottleneck | SSF | VPT | TowerPrompts


class Ball(Section):
    """How far inputs may be moved."""

    rho: float = Field(0.1, ge=0, description="How far an input may be moved, in units of the inputs.")
    norm: Literal["linf", "l2"] = Field("linf", description="Norm that this is of: the largest number's, or Euclidean.")
    low: float | None = Field(0.0, description="Least value of an input; null: any.")
    high: float | None = Field(1.0, description="Largest value of an input; null: any.")


class Adversary(Ball):
    """What attacks inputs in scope `robust`: projected gradient steps against the model that is scored."""

    steps: int = Field(10, ge=1, description="Steps of the attack.")
    step: float | None = Field(None, gt=0, description="Length of a step; null: 2.5 rho / steps.")
    restarts: int = Field(2, ge=1, description="Attacks from different random points, of which the worst counts.")

    @property
    def rate(self) -> float:
        """Return the length of a step."""
        return 2.5 * self.rho / self.steps if self.step is None else self.step


class Evaluate(Section):
    needs: ClassVar = {"finetune_lr": (Need("finetune_epochs", (0,), but=True),)}

    every: int = Field(5, ge=1, description="Rounds between two evaluations; the last round is always evaluated.")
    clients: Literal["auto", "all"] | int | float = Field(
        "auto",
        description="Clients scored, of those that have rows of the split: all, a number, or a fraction; auto: all of up to "
        "10,000, and of more as many, drawn anew for each evaluation. Held-out clients are counted apart by auto.",
    )
    split: Literal["test", "val"] = Field(
        "test",
        description="Rows that are scored; val: each client's validation rows (federation.split.val), and all of them together in "
        "the place of the pooled test set, to choose settings by.",
    )
    finetune_epochs: int = Field(0, ge=0, description="Epochs of local fine-tuning before `local` is scored.")
    finetune_lr: float | None = Field(None, gt=0, description="Learning rate of it; default: the round's local rate.")
    metrics: tuple[str, ...] | None = Field(
        None,
        description="Metrics of all rows at once beside the task's own: auroc, f1, rmse ... (rayfed tasks), or your own, "
        "path/to/file.py:function; null: the usual ones of the task's kind.",
    )
    adversary: Adversary | None = Field(
        None,
        description="Scope robust: what clients are served is also scored on test inputs moved against it (PGD); docs/robust.md.",
    )
    retained: Named | None = Field(
        None,
        description="Data of another task, as `task.data` says it, on whose test rows the global model (else what clients are served) is "
        "scored too, scope `retained`: what training forgets.",
    )
    rows: tuple[int, ...] = Field(
        (),
        description="Evaluated rounds in which the scores of each scored row are kept too, in rows/round-R.npz of the run folder.",
    )

    @field_validator("clients")
    @classmethod
    def _amount(cls, v: Any) -> Any:
        if v not in ("auto", "all") and (v <= 0 or (isinstance(v, float) and v > 1)):
            raise ValueError(f"{v} found, allowed: auto, all, a whole number >= 1 or a fraction in (0, 1]")
        return v


class Server(Section):
    cpus: float = Field(0, ge=0, description="CPUs reserved for the server.")
    gpus: float = Field(0, ge=0, description="GPUs reserved for the server.")
    place: Literal["driver", "any"] = Field("driver", description="On the driver's node, or on any (with gpus > 0).")


class Resources(Section):
    actors: Literal["auto"] | int = Field("auto", description="Client actors; auto fits the machine.")
    cpus_per_actor: float = Field(
        1, gt=0, description="CPUs of one actor, and its torch threads; also those of a run without Ray."
    )
    gpus_per_actor: Literal["auto"] | float = Field(
        "auto", description="GPU share of one actor; auto: 1/k where GPUs exist, else 0."
    )
    cohort: Literal["auto"] | int = Field("auto", description="Clients per call.")
    executor: Literal["auto", "loop", "vmap", "compiled", "debug"] = Field(
        "auto",
        description="How visits run: loop, one client after another; vmap, a cohort at once; compiled, vmap whose training steps are "
        "machine code, made once and kept in the cache; debug; auto: the faster of loop and vmap, by timing once.",
    )
    matmul: Literal["auto", "torch", "onednn"] = Field(
        "auto",
        description="Who multiplies float32 matrices on CPUs; auto: the faster, timed with the executor, else torch.",
    )
    channels_last: Literal["auto"] | bool = Field(
        "auto",
        description="Convolutions' weights in channels-last format; auto: the faster, timed with the executor, else false.",
    )
    visits: Literal["auto", "actors", "server"] = Field(
        "auto",
        description="Where a round's visits run that fit into one call: in an actor, or (on CPUs) in the server's own process; "
        "auto: there if the work, timed with the executor or estimated under one that is set, is less than the way to an actor.",
    )
    replay: Literal["auto", "off"] = Field(
        "auto",
        description="Pieces of visits recorded as kernels and played, which gives the same numbers faster; auto: where a process "
        "finds that it works; off: plain calls, also for code of a visit whose Python must run every time.",
    )
    deterministic: bool = Field(
        False,
        description="The same settings give the same bits in every run: what auto leaves to timing is fixed (vmap, or loop where that "
        "cannot be; torch's products; float32), and kernels are taken that repeat themselves, as CPUs' do; some of CUDA's are slower.",
    )
    server: Server = Server()

    @property
    def vectorised(self) -> bool:
        """Whether the executor runs a whole cohort at once."""
        return self.executor in ("vmap", "compiled")

    @property
    def threads(self) -> int:
        """Return torch's threads in each process that computes."""
        return max(1, int(self.cpus_per_actor))

    @field_validator("replay", mode="before")
    @classmethod
    def _written_in_yaml(cls, v: Any) -> Any:
        return "off" if v is False else v  # how YAML reads a bare off

    @field_validator("actors", "cohort")
    @classmethod
    def _positive(cls, v: Any) -> Any:
        if v != "auto" and v < 1:
            raise ValueError(f"{v} found, allowed: auto or a whole number >= 1")
        return v

    @field_validator("gpus_per_actor")
    @classmethod
    def _share(cls, v: Any) -> Any:
        if v != "auto" and (v < 0 or (v > 1 and v != int(v))):
            raise ValueError(f"{v} found, allowed: auto, a share in [0, 1], or a whole number")
        return v


class Equal(Section):
    profile: Literal["none"] = "none"


class Tier(Section):
    share: float = Field(gt=0, le=1, description="Share of the clients.")
    speed: float = Field(gt=0, description="Local steps per second.")
    bandwidth: float | None = Field(None, gt=0, description="Bytes per second, each way; null: transfers take no time.")
    memory: float | None = Field(
        None, gt=0, description="Bytes that training may take, for methods that choose by it (fedpipe); null: any."
    )


class Tiers(Section):
    profile: Literal["tiers"]
    tiers: list[Tier] = Field(min_length=1, description="Kinds of devices, dealt out by share at random.")

    @field_validator("tiers")
    @classmethod
    def _whole(cls, v: list[Tier]) -> list[Tier]:
        if abs(sum(t.share for t in v) - 1) > 1e-6:
            raise ValueError(f"the shares sum to {sum(t.share for t in v):g}, allowed: 1")
        return v


class Lognormal(Section):
    profile: Literal["lognormal"]
    speed: float = Field(10.0, gt=0, description="Median of the local steps per second.")
    bandwidth: float | None = Field(None, gt=0, description="Median of the bytes per second, each way; null: no time.")
    sigma: float = Field(0.5, ge=0, description="Spread of both, of the logarithm.")


class Measured(Section):
    profile: Literal["trace"]
    file: str = Field(
        description="CSV with columns client, speed, up, down: steps and bytes per second of each client."
    )
    assign: Literal["number", "random"] = Field(
        "number",
        description="Client i has the device of the file's client i; or one of the file's at random, however many it has.",
    )


Devices = Equal | Tiers | Lognormal | Measured


class Storage(Section):
    path: str = Field(
        "runs", description="Folder of run folders, or a place in object storage: s3://bucket/x, gs://..."
    )
    snapshot_every: Literal["auto"] | int = Field(
        "auto",
        description="Rounds from one snapshot to the next; auto: as often as writing them takes 2 % of the time, or every ten minutes.",
    )
    keep: int = Field(2, ge=1, description="Snapshots kept.")
    best: str | None = Field(
        None,
        description="Metric whose best round's models are kept too, in best/ of the run folder, e.g. accuracy/global.",
    )

    @field_validator("snapshot_every")
    @classmethod
    def _rounds(cls, v: Any) -> Any:
        if v != "auto" and v < 1:
            raise ValueError(f"{v} found, allowed: auto or a whole number >= 1")
        return v


class ActorDeath(Section):
    retries: int = Field(3, ge=0, description="How often one call is repeated after its actor died.")


class Stragglers(Section):
    deadline_s: float | None = Field(
        None,
        gt=0,
        description="Simulated seconds after which a round takes nobody any more, by `devices`. null: no limit.",
    )
    over_select: int = Field(
        0, ge=0, description="Clients drawn beyond `federation.per_round`; the fastest ones by `devices` count."
    )

    def given(self) -> list[tuple[str, float]]:
        """Return those that are set: (name, value)."""
        return [(n, v) for n, v in (("deadline_s", self.deadline_s), ("over_select", self.over_select)) if v]


class Failures(Section):
    client_error: Literal["raise", "drop", "retry"] = Field(
        "raise", description="A client that raises: end the run, drop it, or try once more and then drop it."
    )
    client_timeout_s: float | None = Field(
        None, gt=0, description="Seconds that a client's visit may take; one that takes longer fails. null: no limit."
    )
    actor_death: ActorDeath = ActorDeath()
    stragglers: Stragglers = Stragglers()


class Stop(Section):
    needs: ClassVar = {"min_change": (Need("patience", (None,), but=True),)}

    metric: str | None = Field(None, description="Metric that ends the run early, e.g. accuracy/global.")
    at: float | None = Field(None, description="Its value.")
    patience: int | None = Field(
        None, ge=1, description="Evaluations without a better value of the metric after which the run ends."
    )
    min_change: float = Field(0.0, ge=0, description="How much better a value has to be to count as better.")


class Config(Section):
    """One experiment."""

    name: str = Field("run", min_length=1, max_length=200, description="First part of the run folder's name.")
    seed: int = Field(0, ge=0, description="Everything random follows from it.")
    rounds: int = Field(30, ge=1, description="Communication rounds.")
    task: TaskSection
    federation: FederationSection = FederationSection()
    local: Local = Local()
    init: Init = Init()
    adapter: Adapter = Field(Whole(), discriminator="kind")
    method: Named = Field(description="A method's name and its own settings.")
    aggregate: Kind = Field(
        Kind(kind="mean"),
        description="What becomes of the clients' updates where a method averages them: the mean, or a robust rule.",
    )
    attacks: tuple[Kind, ...] = Field(
        (), description="What attackers among the clients do; each has `clients`: who they are."
    )
    transforms: tuple[Kind, ...] = Field(
        (), description="What happens to updates on their way to the server, in this order: docs/transforms.md."
    )
    evaluate: Evaluate = Evaluate()
    resources: Resources = Resources()
    devices: Devices = Field(
        Equal(), discriminator="profile", description="How fast clients compute and send, for simulated time."
    )
    storage: Storage = Storage()
    failures: Failures = Failures()
    stop: Stop = Stop()
    track: list[Literal["tensorboard", "mlflow", "wandb", "prometheus"]] = Field(
        ["tensorboard"], description="Sinks in addition to the run folder."
    )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` reads back."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Return a config that was valid before. pydantic's ValidationError otherwise (users' files go through `config.load`)."""
        return cls.model_validate(values)

    def training_clients(self) -> int:
        """Return the number of clients that can take part: all but the held-out ones."""
        f = self.federation
        held = max(1, round(f.holdout.fraction * f.clients)) if f.holdout.kind == "clients" else 0
        return f.clients - held

    def per_round(self) -> int:
        """Return the number of clients per round."""
        asked, n = self.federation.per_round, self.training_clients()
        if asked is None:
            return n
        return max(1, round(asked * n)) if isinstance(asked, float) else asked

    def is_evaluated(self, round: int) -> bool:
        """Return whether a round is evaluated: every so many, the last one, and the last one of each task of a stream."""
        stream = self.federation.stream
        ends = stream.kind != "none" and round % stream.every == 0 and round <= stream.every * stream.tasks
        return round % self.evaluate.every == 0 or round == self.rounds or ends

    def with_resources(self, **changes: Any) -> Config:
        """Return the same config with other `resources`."""
        return self.model_copy(update={"resources": self.resources.model_copy(update=changes)})

    def with_dtype(self, dtype: str) -> Config:
        """Return the same config with another `task.dtype`."""
        return self.model_copy(update={"task": self.task.model_copy(update={"dtype": dtype})})


class Claim(Section):
    metric: str
    at: int = Field(ge=1, description="The round that is judged.")
    better: str
    than: str
    margin: float = Field(
        0.0, description="Least improvement; below 0: how much worse may still pass (see rayfed.report.study.judge)."
    )
    equal_within: float | None = Field(
        None,
        gt=0,
        description="Difference below which two one-sided tests call the arms equal; default: a point for shares.",
    )
    kind: Literal["difference", "known"] = Field(
        "difference",
        description="known: an answer that is known beforehand, as a check; it is not tested, as bytes are not.",
    )
    about: str = Field("", description="What is claimed, in a sentence.")
    method: str | None = Field(
        None,
        description="The method it is about; default: that of the arm `better`, if the arms differ in their method.",
    )

    @field_validator("margin")
    @classmethod
    def _number(cls, v: float) -> float:
        if not math.isfinite(v):
            raise ValueError(f"{v} found, allowed: a finite number")
        return v


class Study(BaseModel):
    """Every arm with every seed, on the same splits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Config
    raw: dict[str, Any]
    seeds: tuple[int, ...]
    arms: dict[str, Config]
    claims: tuple[Claim, ...] = ()

    @property
    def claim(self) -> Claim | None:
        """Return the first claim."""
        return self.claims[0] if self.claims else None

    def runs(self) -> list[tuple[str, int, Config]]:
        """Return (arm, seed, config) of every run."""
        named = [
            (a, s, c.model_copy(update={"seed": s, "name": f"{self.base.name}-{a}"}))
            for a, c in self.arms.items()
            for s in self.seeds
        ]
        return named

    def to_dict(self) -> dict[str, Any]:
        """Return the study's own file: base config, seeds, arms as written, claim."""
        return self.raw
