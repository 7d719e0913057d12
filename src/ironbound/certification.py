"""`certify`: prove, falsify or leave open each example of a data set, and the result that it returns."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ironbound.bounding import EXACT, METHODS, Arithmetic, find_method
from ironbound.cascade import certify_shard
from ironbound.cascade_types import STATUSES, AttackOptions, Cascade, ShardResult, joined
from ironbound.claims import check_arithmetic
from ironbound.classifier import described, labels_of, open_classifier
from ironbound.data.dataset import digest
from ironbound.errors import InputError
from ironbound.exact.search import SEARCHES
from ironbound.graph import Graph
from ironbound.network import Network
from ironbound.regions import Radius, Region, ball
from ironbound.sharding import in_shards
from ironbound.store import Shard, Store

if TYPE_CHECKING:
    from ironbound.certificate.checker import Certificate

FORMAT = "ironbound-certification/1"
Progress = Callable[[int, int, Mapping[str, int]], None]
"""Called with the number of examples done, of all examples, and of the done ones by status."""


@dataclass(frozen=True, eq=False)
class Certification:
    """What is proved of each example, what is refuted, and under which settings.

    A margin that ends in "certified" has the rounding of its own computation bounded and subtracted, or was proved
    again so, unless `certify` was called with `arithmetic=None` (docs/arithmetic.md).

    Attributes:
        status: "misclassified", "falsified", "certified" or "unknown", [n].
        margins: float64 [n, classes]: lower bounds over the region of logit[label] - logit[k], the best of the methods;
            0 at the label, NaN where no method was run.
        method: the method that proved the last class, or the attack that falsified, or "", [n].
        arithmetic: what the proof of a certified example holds for: "real arithmetic", or "as executed in float32". Of
            an unknown example, and with `arithmetic=None` of a certified one: "float64, not outward rounded" (or
            float32) where its margins are above a guard but one is no proof; "solver tolerances" where "milp" decided a
            class. "" for the others, [n].
        adversarial: by the number of a falsified example the input [*shape] that changes the answer.
        predictions, labels: int64 [n]; without given labels, the predictions are the labels.
        settings: the query in full: ε and its unit, norm, clipping, methods, attack, versions, hashes of network and
            data.
        seconds: spent in "prediction", "bounds" and "attack", threads that ran side by side counted once; of a resumed
            run, all its parts together.
        certificates: by the number of the example, where they were written (`certify(..., certificates=FOLDER)`): what
            the stand-alone checker accepts (docs/certificates.md).
    """

    status: np.ndarray
    margins: Tensor
    method: np.ndarray
    arithmetic: np.ndarray
    adversarial: Mapping[int, Tensor]
    predictions: Tensor
    labels: Tensor
    settings: Mapping[str, Any]
    seconds: Mapping[str, float]
    certificates: Mapping[int, Certificate] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.status)

    @property
    def detection(self) -> bool:
        """Whether the predictions stood in for labels (Wong and Kolter 2018, Corollary 2)."""
        return bool(self.settings["detection"])

    def summary(self, per_class: bool = False) -> dict[str, Any]:
        """Counts and error rates with 95 % intervals (Wilson), for people and reports.

        Args:
            per_class: adds one such summary for each label, under "per_class".

        Returns:
            With labels: "clean_error"; "attack_error", a lower bound of the robust error (None without an attack);
            "certified_error_bound", an upper bound of it. For detection: "certified", the inputs that cannot be
            adversarial, and "flagged", the others. Each is a dict of count, fraction, low and high. Also the number of
            examples by "status", of proofs by "method" and by "arithmetic", and by its words the number of unknown
            examples whose margins are above a guard and no proofs ("unproved").
        """
        report = self._rates(np.ones(len(self), dtype=bool))
        if per_class:
            labels = self.labels.numpy()
            report["per_class"] = {int(label): self._rates(labels == label) for label in np.unique(labels)}
        return report

    def _rates(self, chosen: np.ndarray) -> dict[str, Any]:
        status, method, arithmetic = self.status[chosen], self.method[chosen], self.arithmetic[chosen]
        n = len(status)
        count = {name: int((status == name).sum()) for name in STATUSES}
        report: dict[str, Any] = {"examples": n, "detection": self.detection}
        if self.detection:
            report |= {"certified": rate(count["certified"], n), "flagged": rate(n - count["certified"], n)}
        else:
            wrong = count["misclassified"]
            attacked = self.settings["attack"] is not None
            report |= {
                "clean_error": rate(wrong, n),
                "attack_error": rate(wrong + count["falsified"], n) if attacked else None,
                "certified_error_bound": rate(n - count["certified"], n),
            }
        return report | {
            "status": count,
            "method": dict(Counter(method[status == "certified"].tolist())),
            "arithmetic": dict(Counter(arithmetic[status == "certified"].tolist())),
            "unproved": dict(Counter(arithmetic[(status == "unknown") & (arithmetic != "")].tolist())),
        }

    def to_dict(self, per_class: bool = False) -> dict[str, Any]:
        """The result as plain data, without the adversarial inputs; `docs/cli.md` describes every key."""
        worst = self.margins.scatter(1, self.labels[:, None], torch.inf).amin(1)  # NaN as soon as one class has none
        return {
            "format": FORMAT,
            "summary": self.summary(per_class),
            "settings": dict(self.settings),
            "seconds": {stage: round(spent, 3) for stage, spent in self.seconds.items()},
            "examples": {
                "label": self.labels.tolist(),
                "prediction": self.predictions.tolist(),
                "status": self.status.tolist(),
                "method": self.method.tolist(),
                "arithmetic": self.arithmetic.tolist(),
                "margin": [value if np.isfinite(value) else None for value in worst.tolist()],
            },
        }

    def to_json(self, per_class: bool = False) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(per_class), ensure_ascii=False, allow_nan=False)


def rate(count: int, n: int) -> dict[str, float]:
    """A fraction with its 95 % interval by Wilson's score, which keeps its level for rare events within [0, 1].

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference" (1927).

    Args:
        count: successes.
        n: trials.

    Returns:
        count, fraction, low, high; without trials the interval is [0, 1] and the fraction 0.
    """
    if n == 0:
        return {"count": 0, "fraction": 0.0, "low": 0.0, "high": 1.0}
    z = 1.959963984540054
    share = count / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if count == 0 else float(middle - half)  # exact at the ends, where rounding leaves 1e-18
    high = 1.0 if count == n else float(middle + half)
    return {"count": count, "fraction": share, "low": low, "high": high}


def certify(
    model: nn.Module | Graph,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    eps: Radius,
    norm: str = "linf",
    clip: Sequence[float] | None = None,
    methods: Sequence[str] = ("interval", "dual"),
    attack: AttackOptions | str | None = "pgd",
    store: str | os.PathLike[str] | None = None,
    shard: int = 256,
    progress: Progress | None = None,
    memory: int | None = None,
    budget: float | None = None,
    arithmetic: Arithmetic | None = "real",
    certificates: str | os.PathLike[str] | None = None,
) -> Certification:
    """Decides for each input whether anything within ε of it changes the network's answer.

    Every stage works on what is still open, down to single target classes: prediction, one step of the attack, each
    method in turn, the rest of the attack, and last the searches. Without labels the predicted class takes their place,
    and a certified input cannot be adversarial: all inputs within ε, the one it was made from among them, get the same
    answer (Wong and Kolter 2018, Corollary 2).

    Args:
        model: a classifier in evaluation mode with outputs [batch, classes], or its graph.
        x: [n, *shape], float32 or float64, on any device; shards move to the network's.
        labels: int64 [n], or None for detection.
        eps: a number, one per example [n] or one per element [n, *shape], in the units of x.
        norm: "linf", "l2" or "l1".
        clip: (low, high) that every input element is limited to, or None.
        methods: names from `ironbound.bounding.METHODS`, cheapest first, or "lp"; then "split" or "milp", which search
            until the example is decided. May be empty where there is an attack.
        attack: "pgd", "fgsm", `AttackOptions`, or None.
        store: file for the results, written shard by shard; the same call on the same file goes on
            where an earlier one was stopped.
        shard: number of examples decided at a time, and written at a time.
        progress: called after every shard.
        memory: bytes that a method may take, see `ironbound.margins`.
        budget: seconds that "split" or "milp" may take for an example, and half as many to prove it again with all
            rounding paid for; None: until it is decided.
        arithmetic: what is to be proved. "real": the network in real arithmetic. "float32": every run of it in float32,
            whatever the order of its sums (no TF32, no Winograd or Fourier convolutions), which takes methods from
            `ironbound.bounding.METHODS` and operators whose rounding has a bound. None: no proof is asked for; margins
            as computed certify where they are above a guard, as they do in other tools.
        certificates: folder for certificates of what is certified, see `ironbound.write_certificates`; they are written
            after the last shard, and the same call goes on there, too.

    Returns:
        The status of every example, with what supports it.

    Raises:
        InputError, LabelError: an argument does not fit.
        CaptureError: the network cannot be captured, or for "float32" has no bound of its rounding.
        StoreError: the store cannot be used; the finished shards stay in it.
        CertificateError: the folder holds certificates of something else.
        SoundnessError: a bound and a run of the network contradict each other.
    """
    region = ball(norm, x, eps, clip)
    options = AttackOptions(attack) if isinstance(attack, str) else attack
    cascade = Cascade(tuple(methods), options, memory, budget, arithmetic)
    _check_options(cascade, shard, region)
    network = open_classifier(model, region, bool(cascade.methods))
    labels = labels_of(network, region, labels)
    settings = _settings(network, region, labels, eps, cascade, shard)
    counts: Counter[str] = Counter()
    report = progress or (lambda done, total, counts: None)
    device = network.example.device

    def work(key: Shard) -> ShardResult:
        chosen = slice(*key)
        given = None if labels is None else labels[chosen].to(device)
        return certify_shard(network, region[chosen].to(device), given, cascade, key[0])

    def seen(parts: list[ShardResult]) -> None:
        counts.update(status for part in parts for status in part.status)
        report(counts.total(), len(x), counts)

    if certificates is not None:
        from ironbound.certificate.writing import check_writable, write_certificates

        check_writable(network.graph, x, eps)  # rather before the work than after it
    with nullcontext() if store is None else Store.open(store, settings) as results:
        result = _certification(joined(in_shards(work, len(x), shard, device, results, seen)), settings)
    if certificates is None:
        return result
    written = write_certificates(result, model, x, certificates, eps=eps)
    return replace(result, certificates={one.index: one for one in written.certificates})


def _certification(result: ShardResult, settings: dict[str, Any]) -> Certification:
    return Certification(
        status=np.array(result.status),
        margins=result.margins,
        method=np.array(result.method),
        arithmetic=np.array(result.arithmetic),
        adversarial=result.adversarial,
        predictions=result.predictions,
        labels=result.labels,
        settings=settings,
        seconds=result.seconds,
    )


def _check_options(cascade: Cascade, shard: int, region: Region) -> None:
    if len(region) == 0:
        raise InputError("there is no example to certify.")
    if region.dtype not in (torch.float32, torch.float64):
        raise InputError(f"inputs must be float32 or float64, not {region.dtype}; convert them with .float().")
    for method in cascade.methods:
        if method not in SEARCHES and find_method(method) is None:
            raise InputError(f"method {method!r} is not known; choose from {', '.join((*METHODS, *EXACT))}.")
    if cascade.budget is not None and not 0 < cascade.budget < float("inf"):
        raise InputError(f"the budget must be a positive number of seconds, got {cascade.budget}.")
    attack = cascade.attack
    if not cascade.methods and attack is None:
        raise InputError("there is nothing to do: name a method or an attack.")
    if attack is not None and attack.name not in ("pgd", "fgsm"):
        raise InputError(f"attack {attack.name!r} is not known; choose pgd, fgsm or None.")
    if attack is not None and (attack.steps < 1 or attack.restarts < 1):
        raise InputError(f"steps and restarts must be at least 1, got {attack.steps} and {attack.restarts}.")
    if shard < 1:
        raise InputError(f"shard must be at least 1, got {shard}.")
    check_arithmetic(cascade.arithmetic, cascade.methods, region)


def _settings(
    network: Network, region: Region, labels: Tensor | None, eps: Radius, cascade: Cascade, shard: int
) -> dict[str, Any]:
    """The query in full, as plain data: two runs with equal settings have equal results."""
    radii = torch.as_tensor(eps)
    radius: dict[str, Any] = {"eps": float(eps)} if radii.numel() == 1 else {"eps": region.describe()["eps"]}
    if radii.numel() > 1:
        radius["eps_sha256"] = digest(radii, radii[:0])
    common = described(network, region, labels, cascade.attack, shard)
    return radius | {"methods": list(cascade.methods), "arithmetic": cascade.arithmetic} | common
