"""`rayfed ask`: a request in plain English becomes a checked config, by a grammar; what the grammar does not know is asked back.

Each rule is a pattern and the settings that it stands for. Rules take their words out of the text; what is left but fillers is a question,
and so are two values for one setting and what a rule cannot decide. Nothing of the text is ever executed: settings go through the checks of
every config.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rayfed import aggregate, methods, transform
from rayfed.config.load import merge, nested
from rayfed.errors import ConfigError
from rayfed.launch.preflight import load_request
from rayfed.transform import PLACES

BASE: dict[str, Any] = {"name": "asked", "task": {"data": "digits", "model": {"name": "mlp"}}, "method": "fedavg"}
Settings = dict[str, Any]  # "a.b" -> value
Made = Settings | str  # of a match: settings, or a question

NUMBER = r"(\d+(?:\.\d+)?(?:e-?\d+)?)"
WHOLE = r"(\d+|one|two|three|four|five|six|seven|eight|nine|ten|twenty|fifty|hundred)"
WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
WORDS |= {"twenty": 20, "fifty": 50, "hundred": 100}
BYTES = r"(?:bandwidth|bytes|communication|traffic|upload)"
ROUND = r"(?:per|each|every|a|in each|in every) round"
FILLERS = frozenset(
    re.findall(
        r"\w+",
        """a an the and with for to of on in at by use using please run train training i want we would like it its is be my our me let
        us have make do then also but as each all some model data set dataset config experiment federation federated learning
        over from that this should need can you method size local updates update clients client rounds round accuracy per
        uses used""",
    )
)
CLIP = {"kind": "clip", "norm": 1.0}


def _count(word: str) -> int:
    return WORDS[word] if word in WORDS else int(word)


def _one(key: str, kind: Callable[[str], Any] = _count) -> Callable[..., Made]:
    """Return a rule's end that sets one key to its number."""
    return lambda m: {key: kind(m[1])}


def _chain(*transforms: Mapping[str, Any]) -> Callable[..., Made]:
    return lambda m: {"transforms": [dict(t) for t in transforms]}


def _noise(m: re.Match[str]) -> Made:
    return {
        "transforms": [
            {**CLIP, **({"norm": float(m[2])} if m[2] else {})},
            {"kind": "gaussian", "noise_multiplier": float(m[1])},
        ]
    }


def _names(known: Mapping[str, str]) -> str:
    return "(" + "|".join(sorted(map(re.escape, known), key=len, reverse=True)) + ")"


def _spellings(name: str) -> set[str]:
    apart = {re.sub("^fed(?=.)", f"fed{gap}", name) for gap in ("-", " ")}
    return {name, name.replace("_", " "), name.replace("_", "-"), *apart}


METHODS = {spelling: n for n in methods.ready() for spelling in _spellings(n)}
MODELS = {n: n for n in ("linear", "mlp", "cnn", "resnet", "vit-tiny")} | {
    "convolutional network": "cnn",
    "logistic regression": "linear",
}
ATTACKS = {
    "sign flipping": "sign",
    "sign-flipping": "sign",
    "label flipping": "label_flip",
    "label-flipping": "label_flip",
    "noise": "noise",
}

RULES: list[tuple[str, Callable[[re.Match[str]], Made]]] = [
    # how long, and with whom
    (
        rf"{WHOLE} (?:out )?of (?:the )?{WHOLE} clients(?: {ROUND})?",
        lambda m: {"federation.per_round": _count(m[1]), "federation.clients": _count(m[2])},
    ),
    (rf"{WHOLE} (?:of the )?(?:clients )?{ROUND}", _one("federation.per_round")),
    (
        rf"{NUMBER} ?(?:%|percent) of (?:the |all )?clients(?: {ROUND})?(?! (?:are|attack))",
        lambda m: {"federation.per_round": float(m[1]) / 100},
    ),
    (
        rf"all (?:the )?clients(?: {ROUND})?|full participation|everybody(?: in every round)?",
        lambda m: {"federation.per_round": None},
    ),
    (rf"(?:evaluate|score|test) (?:it )?every {WHOLE} rounds", _one("evaluate.every")),
    (r"(?:evaluate|score|test) (?:it )?every round", lambda m: {"evaluate.every": 1}),
    (rf"{WHOLE} (?:communication )?rounds", _one("rounds")),
    (rf"{WHOLE} (?:clients|devices|participants|hospitals|users)", _one("federation.clients")),
    (rf"(?:random )?seed {WHOLE}", _one("seed")),
    (
        rf"(?:until|stop at|up to|reach(?:es)?) {NUMBER} ?(?:%|percent)(?: accuracy)?",
        lambda m: {"stop.metric": "accuracy/global", "stop.at": float(m[1]) / 100},
    ),
    # local work
    (rf"{WHOLE} (?:local )?epochs?", _one("local.epochs")),
    (rf"{WHOLE} (?:local )?steps?", lambda m: {"local.steps": _count(m[1]), "local.epochs": None}),
    (rf"batch(?:es)?(?: size)?(?: of)? {WHOLE}", _one("local.batch_size")),
    (rf"(?:learning rate|lr|step size)(?: of)? {NUMBER}", _one("local.optimizer.lr", float)),
    (rf"momentum(?: of)? {NUMBER}", _one("local.optimizer.momentum", float)),
    (r"\b(adamw|adam|sgd)\b", _one("local.optimizer.name", str)),
    # data
    (
        rf"dirichlet(?: of)?(?: alpha)?(?: of)? {NUMBER}|alpha(?: of)? {NUMBER}",
        lambda m: {"federation.partition": {"kind": "dirichlet", "alpha": float(m[1] or m[2])}},
    ),
    (
        rf"{WHOLE} shards?(?: (?:per|each|a) client)?",
        lambda m: {"federation.partition": {"kind": "shards", "per_client": _count(m[1])}},
    ),
    (
        r"(?:non[- ]?iid|skewed|heterogeneous|not iid)(?: labels| data)?",
        lambda m: "how unlike should clients be? say: dirichlet 0.1 (much), dirichlet 1 (little), or 2 shards",
    ),
    (r"\biid\b|evenly|identically distributed", lambda m: {"federation.partition": {"kind": "iid"}}),
    (
        rf"{WHOLE} (?:groups|clusters|rotations)",
        lambda m: {"federation.groups": {"kind": "rotation", "count": _count(m[1])}},
    ),
    (rf"{WHOLE} hidden (?:units|neurons)", lambda m: {"task.model.name": "mlp", "task.model.hidden": [_count(m[1])]}),
    (r"(?:handwritten )?digits", lambda m: {"task.data": "digits"}),
    # what travels
    (r"(?:without|no|uncompressed|do not use) ?(?:any )?compress(?:ion|ing)?|uncompressed", _chain()),
    (
        rf"(?:quanti[sz]ed?(?: to| with)? )?{WHOLE}[- ]?bits?(?: quanti[sz]ation| updates)?",
        lambda m: {"transforms": [{"kind": "quantise", "bits": _count(m[1])}]},
    ),
    (
        rf"top[- ]?(?:k )?{NUMBER} ?(?:%|percent)(?: of the (?:entries|updates?|largest entries))?",
        lambda m: {"transforms": [{"kind": "topk", "fraction": float(m[1]) / 100}]},
    ),
    (r"(?:one[- ]bit|sign)(?: compression| sgd|sgd)", _chain({"kind": "sign"})),
    (
        rf"(?:low[- ]rank|powersgd)(?: updates)?(?: of)?(?: rank)? {WHOLE}",
        lambda m: {"transforms": [{"kind": "lowrank", "rank": _count(m[1])}]},
    ),
    (
        r"secure (?:aggregation|sums?)|masks?",
        _chain(CLIP, {"kind": "quantise", "bits": 16, "range": 1.0}, {"kind": "mask"}),
    ),
    (
        rf"noise(?: multiplier)?(?: of)? {NUMBER}(?: , | )?(?:(?:and )?clip(?:ped|ping)?(?: norm)?(?: to| at| of)? {NUMBER})?",
        _noise,
    ),
    (
        r"(?:with )?(?:differential(?:ly)? priva(?:cy|te)|\bdp\b|private)(?: training)?|epsilon(?: of)? [\d.]+",
        lambda m: "how much noise? say: noise 1.0 and clip 0.5 (rayfed validate says which noise keeps to an epsilon)",
    ),
    # goals, by a fixed table
    (
        rf"(?:sav(?:e|es|ing)|little|less|reduc(?:e|ing)|low|limited|small) (?:the )?{BYTES}",
        _chain({"kind": "quantise", "bits": 8}),
    ),
    (
        rf"as few bytes as possible|(?:very little|extremely low|least|minimal) {BYTES}",
        _chain({"kind": "topk", "fraction": 0.1}),
    ),
    (r"as fast as possible|fastest|\bfast\b|quickly", lambda m: {"local.epochs": 1}),
    (
        r"(?:best|highest|maximum) accuracy",
        lambda m: "accuracy comes from a search: which setting should be tried? (rayfed sweep --help)",
    ),
    # who is there
    (r"round[- ]robin|in turn|cyclic(?:ally)?", lambda m: {"federation.participation": {"kind": "cyclic"}}),
    (r"poisson(?: sampling)?", lambda m: {"federation.participation": {"kind": "poisson"}}),
    (
        r"random(?:ly)?(?: chosen| sampled)?|uniform(?:ly)?(?: sampled)?",
        lambda m: {"federation.participation": {"kind": "uniform"}},
    ),
    (
        rf"deadline(?: of)? {NUMBER} ?(?:s|sec|seconds)",
        lambda m: {"failures.stragglers.deadline_s": float(m[1]), "devices": {"profile": "lognormal", "sigma": 1.0}},
    ),
]


@dataclass
class Answer:
    """What became of a request.

    understood: what a rule took, with the settings that it stands for; questions: what is open; changes: all settings, nested; config: the
    resolved config, None where it is refused, which questions say.
    """

    understood: list[tuple[str, Settings]] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None


def _rules() -> list[tuple[str, Callable[[re.Match[str]], Made]]]:
    """Return all rules, names first: a method called after a common word is only meant as a whole word."""
    kinds = {s: k for k in aggregate.KINDS.names() for s in {k, k.replace("_", " "), k.replace("_", "-")}}
    return [
        (
            rf"{NUMBER} ?(?:%|percent) (?:of the clients (?:are )?)?{_names(ATTACKS)} attackers",
            lambda m: {"attacks": [{"kind": ATTACKS[m[2]], "clients": float(m[1]) / 100}]},
        ),
        (rf"\b{_names(kinds)}\b(?: aggregation| rule)?", lambda m: {"aggregate": {"kind": kinds[m[1]]}}),
        (rf"\b{_names(METHODS)}\b", lambda m: {"method": METHODS[m[1]]}),
        (rf"\b{_names(MODELS)}\b", lambda m: {"task.model.name": MODELS[m[1]]}),
        *RULES,
    ]


def _by_kind(found: Settings) -> Settings:
    """Return settings with each transform under a name of its own: several make one chain."""
    steps = found.get("transforms")
    return (
        found
        if not steps
        else {**{k: v for k, v in found.items() if k != "transforms"}, **{f"transforms:{t['kind']}": t for t in steps}}
    )


def ask(text: str) -> Answer:
    """Return the config that a request in plain English stands for, with what is open. ConfigError for an empty request."""
    left = " ".join(re.sub(r"[^\w\s.%+-]", " , ", text.lower()).split())
    left = re.sub(r"\.(?=\s|$)", " ", left)
    if not left.strip(" ,"):
        raise ConfigError(
            'ask: nothing is asked for; say what, for example: rayfed ask "fedprox, 20 rounds, dirichlet 0.1, 8 bits"'
        )
    answer, chosen = Answer(), dict[str, tuple[Any, str]]()
    for pattern, made_by in _rules():
        while match := re.search(rf"(?<![\w.])(?:{pattern})(?!\w)", left):
            left = f"{left[: match.start()]} , {left[match.end() :]}"
            found, words = made_by(match), match[0].strip()
            if isinstance(found, str):
                answer.questions.append(f"{words!r}: {found}")
                continue
            answer.understood.append((words, found))
            for key, value in _by_kind(found).items():
                before = chosen.setdefault(key, (value, words))
                if before[0] != value:
                    answer.questions.append(
                        f"{before[1]!r} and {words!r}: which? both are about {key.partition(':')[0]}"
                    )
    unknown = [" ".join(w for w in piece.split() if w not in FILLERS) for piece in left.split(",")]
    answer.questions += [f"{piece!r}: not understood" for piece in unknown if piece]
    steps = sorted(
        (v for k, (v, _) in chosen.items() if k.startswith("transforms:")),
        key=lambda t: PLACES.index(transform.get(t["kind"]).place),
    )
    if "transforms" in chosen and steps:
        answer.questions.append(f"{chosen['transforms'][1]!r}: but {steps[0]['kind']} is asked for, too; which?")
    chosen |= {"transforms": (steps, "")} if steps else {}
    for key, (value, _) in chosen.items():
        if ":" not in key:
            answer.changes = merge(answer.changes, nested(key, value))
    try:
        written = merge(BASE, answer.changes)
        load_request(written)
        answer.config = written
    except ConfigError as e:
        answer.questions += e.problems
    return answer
