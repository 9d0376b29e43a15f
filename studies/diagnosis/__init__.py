"""What a learning curve says about the run that made it: verdicts with their evidence. No torch."""

from studies.diagnosis.curves import Curve
from studies.diagnosis.diagnose import diagnose
from studies.diagnosis.facts import CurveFacts
from studies.diagnosis.steps import Extrapolation, StepsNeeded, steps_needed
from studies.diagnosis.verdicts import CURES, HEALTHY, LABELS, NAMES, Diagnosis, Verdict

__all__ = [
    "CURES", "HEALTHY", "LABELS", "NAMES", "Curve", "CurveFacts", "Diagnosis", "Extrapolation",
    "StepsNeeded", "Verdict", "diagnose", "steps_needed",
]  # fmt: skip
