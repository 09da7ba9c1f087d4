"""What is wrong with a chain of transforms, said before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rayfed import privacy
from rayfed import transform as transforms
from rayfed.adapters import ranks
from rayfed.config import unread
from rayfed.config.problems import sentences
from rayfed.config.schema import Kind
from rayfed.errors import ConfigError
from rayfed.privacy import correlated
from rayfed.transform import PLACES
from rayfed.transform.clip import Clip
from rayfed.transform.gaussian import Gaussian
from rayfed.transform.mask import Mask
from rayfed.transform.quantise import Quantise
from rayfed.wire import Array, Params

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.method import Method
    from rayfed.transform import Transform

MOST = 10**9  # rounds that a budget is worked out for


def settings_problems(raw: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with each transform of a config as it is written, by itself."""
    found: list[str] = []
    given = raw.get("transforms")
    for i, spec in enumerate(given if isinstance(given, list | tuple) else ()):
        try:
            one = Kind.model_validate(spec)
        except ValidationError:
            continue  # the schema reports it
        try:
            cls = transforms.get(one.kind)
        except ConfigError as e:
            found += [f"transforms.{i}.kind: {p}" for p in e.problems]
            continue
        try:
            found += unread.sentences(cls.Settings(**one.options), f"transforms.{i}")
        except ValidationError as e:
            found += sentences(e, cls.Settings, f"transforms.{i}")
    return found


def rules(config: Config, method: type[Method]) -> list[str]:
    """Return what is wrong with the chain as a whole, for a method and with the config's other keys; none where a transform's
    own settings are wrong, which `settings_problems` says."""
    if not config.transforms or settings_problems(config.to_dict()):
        return []
    found = transforms.of(config)
    at = {t.kind: f"transforms.{i}" for i, t in enumerate(found)}
    if wrong := _order(found):
        return wrong
    return [
        *_of_method(found, at, config, method),
        *_clip(found, at, config),
        *_gaussian(found, at, config, method),
        *_mask(found, at),
        *_masked_parts(found, config, method),
        *_ruled(found, at, config),
        *_memory(found, at),
    ]


def _get(found: Sequence[Transform], kind: type[Any]) -> Any:
    return next((t for t in found if isinstance(t, kind)), None)


def _order(found: Sequence[Transform]) -> list[str]:
    """Return what is wrong with which transforms there are, and in which order."""
    out, words = [], {"compress": "topk, randomk or lowrank", "code": "quantise or sign"}
    allowed = ", ".join(words.get(p, p) for p in PLACES)
    for i, t in enumerate(found):
        before = next((b for b in found[:i] if b.place == t.place), None)
        if before is not None:
            second = "twice" if before.kind == t.kind else f"beside {before.kind}"
            out.append(f"transforms.{i}.kind: {t.kind} found {second}, allowed: one of {words.get(t.place, t.place)}")
            continue
        late = next((b for b in found[:i] if PLACES.index(b.place) > PLACES.index(t.place)), None)
        if late is not None:
            out.append(f"transforms.{i}.kind: {t.kind} found after {late.kind}, allowed in this order: {allowed}")
    return out


def _of_method(found: Sequence[Transform], at: Mapping[str, str], config: Config, method: type[Method]) -> list[str]:
    """Return why transforms cannot act on what the method's clients send."""
    name, out = config.method.name, []
    updates = {n: p for n, p in method.wire.up.items() if p.update}
    if not updates:
        out.append(f"transforms: {found[0].kind} found, but clients of {name} send no update that it could act on")
    if ranks.unequal(config) or ranks.kept(config, method.wire):
        why = "unequal ranks" if ranks.unequal(config) else f"ranks that {name} changes"
        out.append(
            f"transforms: {found[0].kind} found, but the adapter has {why}, which transforms do not know; allowed: one rank"
        )
    open_ended = sorted(n for n, p in updates.items() if not _has_size(p.shape))
    for t in found if open_ended else ():
        if t.feedback or t.kind == "lowrank":
            what = f"{at[t.kind]}.error_feedback: true" if t.feedback else f"{at[t.kind]}.kind: {t.kind}"
            out.append(
                f"{what} found, but {name} sends updates of no declared size ({', '.join(open_ended)}), of which nothing can be kept"
            )
    return out


def _has_size(shape: Any) -> bool:
    if isinstance(shape, Array):
        return all(isinstance(axis, int) or axis == "C" for axis in shape.axes)
    return isinstance(shape, Params) and not shape.own


def _clip(found: Sequence[Transform], at: Mapping[str, str], config: Config) -> list[str]:
    clip, gaussian, mask = (_get(found, kind) for kind in (Clip, Gaussian, Mask))
    if clip is None or clip.settings.quantile is None:
        return []
    out = []
    where = f"{at['clip']}.quantile: {clip.settings.quantile:g} found, but "
    if mask is not None:
        out.append(f"{where}whether an update is clipped would be sent without a mask; allowed: a fixed norm")
    if gaussian is not None and not gaussian.central:
        out.append(f"{where}whether an update is clipped would be sent without noise; allowed: a fixed norm")
    if gaussian is not None and gaussian.settings.bands > 1:
        out.append(
            f"{where}noise that releases share is for one norm (gaussian.bands: {gaussian.settings.bands}); allowed: a fixed norm"
        )
    if gaussian is not None and gaussian.central and gaussian.accountant() is not None:
        noise, z = clip.count_noise(config.per_round(), True), gaussian.settings.noise_multiplier
        if 2 * noise <= z:
            out.append(
                f"{at['clip']}.count_noise: {noise:g} found, allowed with noise_multiplier {z:g}: more than {z / 2:g}"
                + (" (the default is a 20th of a round's clients)" if clip.settings.count_noise is None else "")
            )
    return out


def _gaussian(found: Sequence[Transform], at: Mapping[str, str], config: Config, method: type[Method]) -> list[str]:
    """Return why noise cannot be added, or epsilon not be computed or not be kept to."""
    gaussian = _get(found, Gaussian)
    if gaussian is None:
        return []
    where, out = at["gaussian"], []
    if _get(found, Clip) is None:
        out.append(
            f"{where}.kind: gaussian found, but nothing bounds the updates; allowed: after clip, whose norm it is for"
        )
    if gaussian.central and _get(found, Mask) is not None:
        out.append(
            f"{where}.where: central found, but under mask levels are summed, which no noise of the server's covers; allowed: local"
        )
    kind = gaussian.accountant()
    if kind is None:
        return out
    out += _covers(gaussian, where, config, method)
    if gaussian.settings.accountant == "exact" and gaussian.q() < 1:
        return [
            *out,
            f"{where}.accountant: exact found, which knows no sampling; allowed with per_round below all: auto, prv, pld, none",
        ]
    if package := privacy.missing(kind):
        install = (
            "pip install 'rayfed-engine[privacy]'" if kind == "prv" else f"pip install {package.replace('_', '-')}"
        )
        return [
            *out,
            f"{where}.accountant: {gaussian.settings.accountant} found, which needs {package}: {install}, or accountant: none for noise "
            "without an epsilon",
        ]
    return out if out else _budget(gaussian, where, config)


def _covers(gaussian: Gaussian, where: str, config: Config, method: type[Method]) -> list[str]:
    """Return why an epsilon would say nothing of what leaves the clients."""
    out, name = [], config.method.name
    without = "; allowed: accountant: none, noise without an epsilon"
    others = sorted(n for n, p in method.wire.up.items() if not p.update)
    if others:
        out.append(
            f"{where}: gaussian found, but clients of {name} also send {', '.join(others)}, which gets no noise{without}"
        )
    if gaussian.central and not _sums_only(method):
        out.append(
            f"{where}: gaussian found, but the server of {name} reads more of its replies than means and sums of updates (who or how many "
            f"replied, say), which no noise covers{without}"
        )
    if gaussian.settings.bands > 1:
        return [*out, *_in_turn(gaussian, where, config)]
    if gaussian.central and gaussian.q() < 1 and config.federation.participation.kind != "poisson":
        out.append(
            f"federation.participation.kind: {config.federation.participation.kind} found, epsilon is of clients that are drawn one by "
            "one; allowed with gaussian: poisson, or per_round: null for all"
        )
    return [*out, *_undisturbed(config)] if gaussian.central else out


def _in_turn(gaussian: Gaussian, where: str, config: Config) -> list[str]:
    """Return why the epsilon of correlated noise would not hold: of clients that come in no fixed cycle, or of too many rounds."""
    out, kind = [], config.federation.participation.kind
    if kind != "cyclic" and (config.per_round() < config.training_clients() or kind != "uniform"):
        out.append(
            f"federation.participation.kind: {kind} found, the epsilon of gaussian.bands is of clients that come in turn; allowed: cyclic, "
            "or uniform with per_round: null for all"
        )
    if config.rounds > correlated.LONGEST:
        out.append(
            f"rounds: {config.rounds} found, allowed with {where}.bands: at most {correlated.LONGEST}, or accountant: none"
        )
    return [*out, *_undisturbed(config)]


def _undisturbed(config: Config) -> list[str]:
    """Return why who takes part depends on more than chance or turn."""
    return [
        f"failures.stragglers.{name}: {value:g} found, epsilon is of clients that are drawn one by one, whatever their speed; "
        "allowed with gaussian: leave it out, or accountant: none"
        for name, value in config.failures.stragglers.given()
    ]


def _sums_only(method: type[Method]) -> bool:
    """Return whether the class that has the server program says that it reads sums only; a subclass with another one says so itself."""
    program = next(c for c in method.__mro__ if "round" in vars(c))
    return bool(vars(program).get("sums_only", False))


def _budget(gaussian: Gaussian, where: str, config: Config) -> list[str]:
    budget, releases = gaussian.settings.epsilon, min(config.rounds, MOST)
    if budget is None or (spent := gaussian.epsilon(releases)) <= budget:
        return []
    needed = gaussian.noise_for(releases)
    return [
        f"{where}.epsilon: {budget:g} found, {config.rounds} rounds with noise_multiplier {gaussian.settings.noise_multiplier:g} spend "
        f"{spent:.3g}; allowed: noise_multiplier of at least {needed:g}, or epsilon of at least {spent:.4g}"
    ]


def _mask(found: Sequence[Transform], at: Mapping[str, str]) -> list[str]:
    mask, quantise = _get(found, Mask), _get(found, Quantise)
    if mask is None:
        return []
    where = f"{at['mask']}.kind: mask found, but "
    if quantise is None:
        return [f"{where}masks are added to whole numbers, not to floats; allowed: after quantise with a range"]
    out = []
    if quantise.settings.range is None:
        out.append(
            f"{where}quantise gives each client scales of its own, so that levels have no sum; allowed: quantise with a range"
        )
    for t in found:
        if t.place == "compress":
            out.append(
                f"{where}{t.kind} leaves other entries of each client, or other numbers than entries; allowed: clip, gaussian, quantise"
            )
    return out


def _memory(found: Sequence[Transform], at: Mapping[str, str]) -> list[str]:
    """Return why error feedback has nothing to add to: a compressor before it sends other entries, or numbers, each time."""
    first = next((t for t in found if t.place == "compress"), None)
    return [
        f"{at[t.kind]}.error_feedback: true found after {first.kind}, which sends other entries or numbers each time; allowed: false "
        f"(error_feedback of {first.kind} keeps what {t.kind} leaves out, too)"
        for t in found
        if first is not None and t.place == "code" and t.feedback
    ]


def _masked_parts(found: Sequence[Transform], config: Config, method: type[Method]) -> list[str]:
    others = sorted(n for n, p in method.wire.up.items() if not p.update)
    if _get(found, Mask) is None or not others:
        return []
    return [f"transforms: mask found, but clients of {config.method.name} also send {', '.join(others)} without one"]


def _ruled(found: Sequence[Transform], at: Mapping[str, str], config: Config) -> list[str]:
    """Return why a rule of aggregation cannot have the place of the mean under these transforms."""
    rule, out = config.aggregate.kind, []
    if rule == "mean":
        return []
    where = f"aggregate.kind: {rule} found, allowed with"
    for t in found:
        if isinstance(t, Mask):
            out.append(f"{where} mask: mean, since the server sees nothing but the sum of updates")
        if isinstance(t, Gaussian) and t.central:
            out.append(f"{where} central noise: mean, since the noise is for a sum; or {at[t.kind]}.where: local")
        if isinstance(t, Clip) and t.settings.quantile is not None:
            out.append(f"{where} {at[t.kind]}.quantile: mean, or a fixed norm")
    return out


def example_rules(config: Config, method: type[Method]) -> list[str]:
    """Return what is wrong with `local.privacy`: a method without a place for it, or an epsilon that says nothing or is too large."""
    private = config.local.privacy
    if private is None:
        return []
    if method.no_privacy:
        return [f"local.privacy: found, but {config.method.name} {method.no_privacy}; allowed: null"]
    if private.accountant == "none":
        return []
    none, where = "; allowed: accountant: none, noise without an epsilon", "local.privacy"
    if not _sums_only(method) or any(not p.update for p in method.wire.up.values()):
        return [
            f"{where}: accountant exact found, but whether clients of {config.method.name} send nothing but what they trained is not known"
            + none
        ]
    if config.local.steps is not None:
        return [
            f"{where}: accountant exact found with local.steps, of which epsilon is not worked out; allowed: local.epochs{none[9:]}"
        ]
    epochs = min(config.rounds, MOST) * min(config.local.epochs or 1, MOST)
    spent = privacy.epsilon("exact", 1.0, private.noise_multiplier, epochs, private.delta)
    if private.epsilon is None or spent <= private.epsilon:
        return []
    needed = privacy.noise_for("exact", 1.0, epochs, private.delta, private.epsilon)
    return [
        f"{where}.epsilon: {private.epsilon:g} found, {epochs} epochs in all with noise_multiplier {private.noise_multiplier:g} spend "
        f"{spent:.3g}; allowed: noise_multiplier of at least {needed:g}, or epsilon of at least {spent:.4g}"
    ]


def no_buffers(config: Config) -> str | None:
    """Return why a network must not write buffers in training under these settings, as the end of a sentence; None if it may."""
    if config.local.privacy is not None:
        return "local.privacy takes gradients of one example at a time, which has no batch statistics"
    kinds = {t.kind: t.options for t in config.transforms}
    if "mask" in kinds:
        return "transforms: mask would send them without a mask"
    if "gaussian" not in kinds:
        return None
    if kinds["gaussian"].get("where", "central") == "central":
        return "transforms: gaussian would add noise to them that no clip bounds, and variances could fall below 0"
    accounts = kinds["gaussian"].get("accountant") != "none"
    return "transforms: gaussian would send them without noise" if accounts else None


def metrics(config: Config) -> list[str]:
    """Return the metrics that a config's transforms and privacy add to the rows."""
    found = transforms.of(config)
    gaussian = _get(found, Gaussian)
    accounts = gaussian is not None and gaussian.accountant() is not None
    private = config.local.privacy
    of_examples = private is not None and private.accountant != "none"
    return [
        *(["transforms/clip"] if _get(found, Clip) else []),
        *(["privacy/epsilon"] if accounts else []),
        *(["privacy/epsilon_examples"] if of_examples else []),
    ]
