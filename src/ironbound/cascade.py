"""The cascade that decides one shard of examples: prediction, attack and methods, each only on what is still open."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ironbound.attacks import fgsm, pgd
from ironbound.bounding import Arithmetic, margins
from ironbound.bounding.api import proves_in
from ironbound.cascade_types import AttackOptions, Cascade, ShardResult
from ironbound.claims import CLAIMS, PROVED, outward, proving, rounding_of, unproved
from ironbound.errors import InputError, SoundnessError, UnsupportedOperatorError
from ironbound.exact.query import Budget, Outcome
from ironbound.exact.search import SEARCHES, label_query, search
from ironbound.network import Network
from ironbound.regions import Region

COARSE = 1e-4  # share of 1 + max |logit| below which a float32 margin is not trusted; bounds carry about 2e-5 of noise
FINE = 1e-9  # the same for float64
REDONE = 10.0  # seconds to prove again what a search has found, for an example and class; or half the budget


def certify_shard(
    network: Network, region: Region, labels: Tensor | None, cascade: Cascade, first: int = 0
) -> ShardResult:
    """Decides each example of a shard; a pure function of its arguments.

    An example is certified when every class but its own has a positive margin. Methods whose rounding has a bound
    (`ironbound.bounding.METHODS`, and the semidefinite ones) compute margins in float64 that are proofs for
    `cascade.arithmetic` (docs/arithmetic.md). Other methods, networks without a float64 copy, and operators without a
    bound of their rounding need a margin above a guard, which is experience: in float32 1e-4 (1 + max |logit|); margins
    nearer to 0 are computed again in float64, where it is 1e-9 (1 + max |logit|). Those are proved again by the checker
    of certificates; where it does not succeed the example is unknown, unless `cascade.arithmetic` is None.

    Every margin is compared with the network's own outputs at the center and at attacked points; a bound above
    what the network does there is a contradiction.

    Args:
        network: the classifier.
        region: the shard's inputs.
        labels: int64 [n], or None to take each prediction as the label.
        cascade: the stages.
        first: number of the shard's first example: it stands in messages and varies the attack's random starts.

    Returns:
        The decisions.

    Raises:
        InputError: the network's outputs are NaN or infinite.
        SoundnessError: a bound and a run of the network contradict each other.
    """
    state = _State(network, region, labels, first, cascade.arithmetic)
    attack = cascade.attack
    if attack is not None:
        state.attack(attack, quick=True)
    searches = [place for place, method in enumerate(cascade.methods) if method in SEARCHES]
    first_search = searches[0] if searches else len(cascade.methods)
    for method in cascade.methods[:first_search]:
        state.prove(method, cascade.memory)
    if attack is not None and attack.name == "pgd":
        state.attack(attack, quick=False)
    for method in cascade.methods[first_search:]:
        if method in SEARCHES:
            state.search(method, cascade)
        else:
            state.prove(method, cascade.memory)
    state.redo(REDONE if cascade.budget is None else max(min(REDONE, cascade.budget), cascade.budget / 2))
    return state.result()


@dataclass(eq=False)
class _State:
    """What is known of each example while the stages run."""

    network: Network
    region: Region
    given: Tensor | None
    first: int
    wanted: Arithmetic | None = "real"
    seconds: dict[str, float] = field(default_factory=lambda: {"prediction": 0.0, "bounds": 0.0, "attack": 0.0})

    def __post_init__(self) -> None:
        with self._timed("prediction"):
            logits = self.network.logits(self.region.center).double()
        bad = ~torch.isfinite(logits).all(1)
        if bad.any():
            raise InputError(
                f"the network returns NaN or infinity for example {self.first + int(bad.nonzero()[0])}; "
                "check its weights and the range of the inputs."
            )
        self.predictions = logits.argmax(1)
        self.labels = self.predictions if self.given is None else self.given
        self.correct = self.predictions == self.labels
        self.attained = self._differences(
            logits, self.labels
        )  # upper bounds of the margins: seen at points of the region
        scale = 1 + logits.abs().amax(1, keepdim=True)
        self.fine = FINE * scale
        self.guard = self.fine if self.region.dtype == torch.float64 else COARSE * scale
        self.margins = torch.full_like(logits, torch.nan).scatter(1, self.labels[:, None], 0.0)
        self.proved = torch.zeros_like(logits, dtype=torch.bool).scatter(1, self.labels[:, None], True)
        self.method = [""] * len(logits)
        self.claim = torch.zeros_like(logits, dtype=torch.int64)  # place in CLAIMS
        self.adversarial: dict[int, Tensor] = {}

    def open(self) -> Tensor:
        """Numbers of the examples that no stage has decided."""
        undecided = self.correct & ~self.proved.all(1)
        undecided[list(self.adversarial)] = False
        return undecided.nonzero()[:, 0]

    def attack(self, options: AttackOptions, quick: bool) -> None:
        """One stage of the attack on the open examples; what it finds counts only after the re-check."""
        index = self.open()
        if not len(index):
            return
        with self._timed("attack"):
            region, labels = self.region[index], self.labels[index]
            if quick:
                found = fgsm(self.network.model, region, labels)
            else:
                found = pgd(
                    self.network.model,
                    region,
                    labels,
                    steps=options.steps,
                    restarts=options.restarts,
                    targeted=options.targeted,
                    seed=options.seed + self.first,
                )
            self._recheck(index, found.points.detach(), found.success, "fgsm" if quick else "pgd")
        self._check(index, "an earlier method")

    def prove(self, method: str, memory: int | None) -> None:
        """One method on the open classes of the open examples."""
        index = self.open()
        if not len(index):
            return
        with self._timed("bounds"), torch.no_grad():
            targets = ~self.proved[index]
            found = self._outward(index, method, targets, memory)
            if found is not None:
                claim = torch.full_like(self.claim[index], CLAIMS.index(PROVED[self.wanted or "real"]))
                above = found > 0
            else:
                found, above, claim = self._guarded(index, method, targets, memory)
            found = torch.where(targets, found, torch.nan)
            self.margins[index] = torch.fmax(self.margins[index], found)
            self._check(index, f"method {method!r}")
            self._enter(index, above & targets, claim)
        for example in index[self.proved[index].all(1)].tolist():
            self.method[example] = method

    def _enter(self, index: Tensor, proved: Tensor, claim: Tensor) -> None:
        """Notes which margins are proved, bool [len(index), classes], and in which arithmetic."""
        self.claim[index] = torch.where(proved & ~self.proved[index], claim, self.claim[index])
        self.proved[index] |= proved

    def _outward(self, index: Tensor, method: str, targets: Tensor, memory: int | None) -> Tensor | None:
        """Margins that are proofs for the wanted arithmetic, or None where this method or network has none."""
        exact = proving(self.network, method, self.wanted)
        if exact is None:
            return None
        networks = [self.network, exact] if self._proves_as_it_is(method) else [exact]
        found = torch.full(targets.shape, torch.nan, dtype=torch.float64, device=targets.device)
        try:
            for network in networks:
                wanted = targets & ~(found > 0)
                found = torch.fmax(found, self._proofs(network, index, method, wanted, memory))
        except UnsupportedOperatorError:
            if self.wanted == "float32":
                raise
            return None
        return found

    def _proofs(self, network: Network, index: Tensor, method: str, targets: Tensor, memory: int | None) -> Tensor:
        """Margins in a network's own dtype, rounded outward, float64 [len(index), classes]; NaN where not asked for."""
        found = torch.full(targets.shape, torch.nan, dtype=torch.float64, device=targets.device)
        rows = targets.any(1).nonzero()[:, 0]
        if not len(rows):
            return found
        region, labels = outward(self.region[index[rows]], network.example.dtype), self.labels[index[rows]]
        arithmetic = rounding_of(method, self.wanted)
        found[rows] = margins(
            network.graph, region, labels, method=method, targets=targets[rows], memory=memory, arithmetic=arithmetic
        ).double()
        return found

    def _proves_as_it_is(self, method: str) -> bool:
        """Whether bounds in the network's own float32 can be proofs: half the time, and most margins bear its price."""
        own = self.region.dtype
        return own == torch.float32 and proves_in(own, method, self.region.center.device) and self.network.same_numbers

    def _guarded(
        self, index: Tensor, method: str, targets: Tensor, memory: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Margins as computed, whether they are above their guard, and the arithmetic that this was."""
        region, labels = self.region[index], self.labels[index]
        found = margins(self.network.graph, region, labels, method=method, targets=targets, memory=memory).double()
        guard = self.guard[index]
        claim = torch.full_like(self.claim[index], CLAIMS.index(unproved(method, self.region.dtype)))
        if self.region.dtype == torch.float64:
            return found, found > guard, claim
        doubtful = targets & ((found.abs() <= guard) | (found > self.attained[index] + guard))
        exact = self._in_double(index, doubtful, method, memory)
        redone = doubtful & ~exact.isnan()
        found = torch.where(redone, exact, found)
        claim = claim.masked_fill(redone, CLAIMS.index(unproved(method, torch.float64)))
        return found, found > torch.where(redone, self.fine[index], guard), claim

    def search(self, method: str, cascade: Cascade) -> None:
        """One search on the open classes of each open example, in float64 where the network can be converted."""
        for example in self.open().tolist():
            index = torch.tensor([example], device=self.labels.device)
            with self._timed("bounds"):
                outcome = self._searched(example, method, cascade)
            if outcome.candidate is not None:
                point = self.region[index].project(outcome.candidate.to(self.region.dtype))
                with self._timed("attack"):
                    self._recheck(index, point, torch.ones_like(index, dtype=torch.bool), method)
            self._check(index, f"method {method!r}")
            if self.proved[example].all():
                self.method[example] = method

    def _searched(self, example: int, method: str, cascade: Cascade) -> Outcome:
        """Runs a search and notes its margins."""
        own = slice(example, example + 1)
        double = self.network.double if self.region.dtype == torch.float32 else None
        network = self.network if double is None else double
        region = self.region[own] if double is None else self.region[own].to(torch.float64)
        guard = self.guard if double is None else self.fine
        targets = torch.nonzero(~self.proved[example]).squeeze(1)
        label = int(self.labels[example])
        query = label_query(network.graph, region, label, targets, float(guard[example]))
        outcome = search(method, query, Budget.of(cascade.budget, cascade.memory))
        lower = outcome.lower.double()
        self.margins[example, targets] = torch.fmax(self.margins[example, targets], lower)
        self.proved[example, targets] |= lower > guard[example]  # NaN is never above
        self.claim[example, targets] = CLAIMS.index(unproved(method, region.dtype))
        return outcome

    def redo(self, seconds: float) -> None:
        """Proofs whose rounding has no bound are done again by the checker of certificates, which pays for its own."""
        weak = self.correct & self.proved.all(1) & (self._claims() >= len(PROVED))
        index = weak.nonzero()[:, 0]
        if not len(index) or self.wanted != "real":
            return
        exact = self.network if self.region.dtype == torch.float64 else self.network.double
        if exact is None or exact.plain is None:
            return
        from ironbound.certificate.finding import proved_again

        with self._timed("bounds"):
            labels = self.labels[index].tolist()
            again = proved_again(exact.plain, outward(self.region[index]), labels, seconds)
        self.claim[index[torch.tensor(again, device=index.device)]] = CLAIMS.index(PROVED["real"])

    def _claims(self) -> Tensor:
        """The weakest claim of each example's classes, as a place in `CLAIMS`."""
        return self.claim.scatter(1, self.labels[:, None], 0).amax(1)

    def _suffices(self, claim: str) -> bool:
        """Whether an example with this claim, "" for none, is certified."""
        return claim != "" if self.wanted is None else claim in PROVED.values()

    def result(self) -> ShardResult:
        """The decisions, on the CPU."""
        closed = (self.correct & self.proved.all(1)).tolist()
        claim = [CLAIMS[place] if done else "" for place, done in zip(self._claims().tolist(), closed, strict=True)]
        status = ["certified" if self._suffices(words) else "unknown" for words in claim]
        for example in (~self.correct).nonzero()[:, 0].tolist():
            status[example] = "misclassified"
        for example in self.adversarial:
            if closed[example]:
                raise SoundnessError(f"example {self.first + example} is proved and falsified; please report it.")
            status[example] = "falsified"
        decided = [name if at != "unknown" else "" for name, at in zip(self.method, status, strict=True)]
        return ShardResult(
            status=tuple(status),
            method=tuple(decided),
            arithmetic=tuple(claim),
            labels=self.labels.cpu(),
            predictions=self.predictions.cpu(),
            margins=self.margins.cpu(),
            adversarial={example: point.cpu() for example, point in sorted(self.adversarial.items())},
            seconds=self.seconds,
        )

    def _in_double(self, index: Tensor, doubtful: Tensor, method: str, memory: int | None) -> Tensor:
        """The doubtful margins [len(index), classes] in float64; NaN elsewhere, or without a float64 network."""
        exact = torch.full(doubtful.shape, torch.nan, dtype=torch.float64, device=doubtful.device)
        rows = doubtful.any(1).nonzero()[:, 0]
        double = self.network.double
        if not len(rows) or double is None:
            return exact
        region = self.region[index[rows]].to(torch.float64)
        exact[rows] = margins(
            double.graph, region, self.labels[index[rows]], method=method, targets=doubtful[rows], memory=memory
        )
        return torch.where(doubtful, exact, torch.nan)

    def _recheck(self, index: Tensor, points: Tensor, success: Tensor, name: str) -> None:
        """Runs the network again on exactly the points found, successes each on a batch of its own."""
        seen = self._differences(self.network.logits(points).double(), self.labels[index])
        inside = self.region[index].contains(points)
        seen[~inside] = torch.inf
        self.attained[index] = torch.fmin(self.attained[index], seen)
        for row in (success.to(inside.device) & inside).nonzero()[:, 0].tolist():
            example = int(index[row])
            alone = self._differences(self.network.logits(points[row : row + 1]).double(), self.labels[example][None])
            if (alone < 0).any():  # a tie changes no answer
                self.adversarial[example] = points[row].clone()
                self.method[example] = name

    def _check(self, index: Tensor, who: str) -> None:
        """Compares the margins with what the network does at points of the region."""
        excess = self.margins[index] - self.attained[index] - self.guard[index]
        bad = (excess > 0).nonzero()
        if len(bad):
            row, target = bad[0].tolist()
            example = int(index[row])
            raise SoundnessError(
                f"{who} gives example {self.first + example} a margin of {self.margins[example, target]:g} against "
                f"class {target}, but the network has {self.attained[example, target]:g} inside the region; "
                "nothing of this run is certified: please report it."
            )

    @staticmethod
    def _differences(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.gather(1, labels[:, None]) - logits

    @contextmanager
    def _timed(self, stage: str) -> Generator[None, None, None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start
