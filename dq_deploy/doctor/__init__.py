"""What is installed, what works with what, what is wrong, and the command that fixes it. Imports nothing heavy into this process."""

from .diagnosis import Diagnosis, diagnose
from .finding import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
