"""Verifying: original against unbound form of rules on one model, with a certificate of what was found."""

from fxtune.verifying.certificate import Agreement, Breach, Certificate
from fxtune.verifying.example import Example
from fxtune.verifying.verify import verify

__all__ = ["Agreement", "Breach", "Certificate", "Example", "verify"]
