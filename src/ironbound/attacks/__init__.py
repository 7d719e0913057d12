"""Attacks: they look for inputs of a region that a network gets wrong, and return candidates, never verdicts."""

from ironbound.attacks.carlini_wagner import carlini_wagner
from ironbound.attacks.fgsm import fgsm
from ironbound.attacks.pgd import pgd
from ironbound.attacks.result import Attack

__all__ = ["Attack", "carlini_wagner", "fgsm", "pgd"]
