"""Attacks, suites and the scheduler that gives each image its worst case.

A library over torch alone: a callable model and tensors in, verdicts and adversarials out.
"""

from benchmark.attacks.apgd import APGD
from benchmark.attacks.attack import Attack
from benchmark.attacks.closest import DDN, FMN, DeepFool
from benchmark.attacks.execution import Execution, Net, NoGradientError
from benchmark.attacks.fab import FAB
from benchmark.attacks.geometry import Norm
from benchmark.attacks.goals import Objective
from benchmark.attacks.gradient import FGSM, PGD
from benchmark.attacks.hybrid import Hybrid
from benchmark.attacks.masking import Finding
from benchmark.attacks.scheduler import Done, Example, Outcome, Progress, Report, evaluate, evaluate_curve
from benchmark.attacks.square import Square
from benchmark.attacks.suites import Suite, boundary, curve, minimal, quick, standard

__all__ = [
    "APGD",
    "DDN",
    "FAB",
    "FGSM",
    "FMN",
    "PGD",
    "Attack",
    "DeepFool",
    "Done",
    "Example",
    "Execution",
    "Finding",
    "Hybrid",
    "Net",
    "NoGradientError",
    "Norm",
    "Objective",
    "Outcome",
    "Progress",
    "Report",
    "Square",
    "Suite",
    "boundary",
    "curve",
    "evaluate",
    "evaluate_curve",
    "minimal",
    "quick",
    "standard",
]
