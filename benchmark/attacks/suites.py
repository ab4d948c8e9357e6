"""Named suites of attacks, cheapest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from annotations.errors import BeyondError
from benchmark.attacks.apgd import APGD
from benchmark.attacks.attack import Attack
from benchmark.attacks.closest import DDN, FMN, DeepFool
from benchmark.attacks.fab import FAB
from benchmark.attacks.geometry import Norm
from benchmark.attacks.gradient import FGSM, PGD
from benchmark.attacks.hybrid import Hybrid
from benchmark.attacks.square import Square


def label(attack: Attack[Any]) -> str:
    """Name of an attack with its loss or form, such as `apgd-t`."""
    return str(getattr(attack, "label", attack.name))


@dataclass(frozen=True)
class Suite:
    """Attacks that run one after the other, each on what the ones before left unbroken.

    Attributes:
        name: Name.
        note: What the suite may be called, for tables.
        norm: Norm of the threat model.
        eps: Radius, or None for a suite of minimal perturbations.
        attacks: The attacks, in order.
    """

    name: str
    note: str
    norm: Norm
    eps: float | None
    attacks: tuple[Attack[Any], ...]

    def __post_init__(self) -> None:
        if not self.attacks:
            raise BeyondError(f"suite {self.name} has no attack: give it at least one")
        if any(a.norm != self.norm or a.eps != self.eps for a in self.attacks):
            raise BeyondError(
                f"suite {self.name} mixes threat models: use one norm and radius for all attacks"
            )

    def without_gradients(self) -> Suite:
        """The attacks that need no gradient, for a model that has none."""
        rest = tuple(a for a in self.attacks if not a.white_box)
        if not rest:
            raise BeyondError(
                f"every attack of suite {self.name} needs gradients and the model has none: "
                "use standard or quick"
            )
        return Suite(f"{self.name}-black-box", f"{self.note}; black-box part only", self.norm, self.eps, rest)

    def describe(self) -> dict[str, Any]:
        """Settings of the suite as JSON-ready values."""
        return {
            "name": self.name,
            "note": self.note,
            "norm": self.norm,
            "eps": self.eps,
            "attacks": [{"name": label(a), **asdict(a)} for a in self.attacks],
        }


def standard(norm: Norm, eps: float) -> Suite:
    """APGD-CE, targeted APGD-DLR, targeted FAB and Square with the budgets of AutoAttack's `standard`.

    Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", section 5: 100 iterations, one restart, nine targets, 5,000 queries. One FGSM
    step goes first because it is cheap and breaks most images of an undefended model. For L2, two runs of
    `Hybrid` and a second start for the three likeliest targets are added because, near the end, which images
    the original budgets break is a matter of their seed; for L∞ they broke nothing that mattered.
    """
    more: tuple[Attack[Any], ...] = (Hybrid(norm=norm, eps=eps),) if norm == "l2" else ()
    return Suite(
        "standard",
        "budgets of AutoAttack standard",
        norm,
        eps,
        (
            FGSM(norm=norm, eps=eps),
            APGD(norm=norm, eps=eps, loss="ce"),
            APGD(norm=norm, eps=eps, loss="dlr-targeted", extra=3 if norm == "l2" else 0),
            *more,
            FAB(norm=norm, eps=eps, targeted=True),
            Square(norm=norm, eps=eps),
        ),
    )


def quick(norm: Norm, eps: float) -> Suite:
    """A reduction for quick looks: its robust accuracy is an upper bound on that of `standard`."""
    return Suite(
        "quick",
        "reduced budgets: an upper bound, not AutoAttack",
        norm,
        eps,
        (
            FGSM(norm=norm, eps=eps),
            PGD(norm=norm, eps=eps, steps=10, step_size=0.25),
            APGD(norm=norm, eps=eps, loss="dlr-targeted", steps=20, targets=3),
            Square(norm=norm, eps=eps, queries=100),
        ),
    )


def minimal(norm: Norm, *, targeted: bool = True) -> Suite:
    """The smallest perturbations found by DeepFool, DDN (L2 only) and FAB.

    Args:
        norm: Norm to minimise.
        targeted: Run FAB once for each of nine targets, or once for all.
    """
    ddn: tuple[Attack[Any], ...] = (DDN(),) if norm == "l2" else ()
    return Suite(
        "minimal",
        "smallest perturbation found",
        norm,
        None,
        (DeepFool(norm=norm), *ddn, FAB(norm=norm, targeted=targeted)),
    )


BOUNDARY_TIERS = ("quick", "standard", "full")
"""Budgets of `boundary`, ascending."""


def boundary(tier: str, *, random: bool = False) -> Suite:
    """The smallest L2 perturbations found within a budget, for the distance to the decision boundary.

    A larger tier runs every attack of the smaller ones with at least their budget, and more.

    Args:
        tier: One of `BOUNDARY_TIERS`.
        random: Let FMN begin at a random point, so that the seed matters; the other attacks know no chance.
    """
    fmn = {"quick": 20, "standard": 50, "full": 100}
    if tier not in fmn:
        raise BeyondError(f"no tier {tier!r} of distances: use {', '.join(BOUNDARY_TIERS)}")
    few = 4 if tier == "quick" else 9
    attacks: list[Attack[Any]] = [
        DeepFool(norm="l2", candidates=few),
        FMN(steps=fmn[tier], random=random),
    ]
    if tier != "quick":
        attacks.append(DDN(first_radius=0.5))
    if tier == "full":
        attacks.append(FAB(norm="l2", targeted=True))
    return Suite(f"boundary-{tier}", "an upper bound on the distance", "l2", None, tuple(attacks))


def curve(norm: Norm, radii: Sequence[float], *, tier: str = "standard") -> list[Suite]:
    """One suite a radius, ascending: what is broken at one radius stays broken at the next.

    Args:
        norm: Norm of the threat model.
        radii: Radii.
        tier: `standard` or `quick`.
    """
    makers = {"standard": standard, "quick": quick}
    if tier not in makers:
        raise BeyondError(f"no suite {tier!r} for a curve: use {' or '.join(makers)}")
    if not radii:
        raise BeyondError("a curve needs at least one radius: pass some")
    return [makers[tier](norm, eps) for eps in sorted(set(radii))]
