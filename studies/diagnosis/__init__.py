"""Problems that a learning curve shows: verdicts with their evidence, and what to do.

A diagnosis is a pure function of a curve and a few facts; nothing here trains or needs torch.
"""

from studies.diagnosis.curves import Curve
from studies.diagnosis.diagnose import diagnose
from studies.diagnosis.facts import CurveFacts
from studies.diagnosis.steps import DoublingGain, StepsNeeded, steps_needed, steps_sentences
from studies.diagnosis.verdicts import CURES, HEALTHY, LABELS, NAMES, Diagnosis, Verdict

__all__ = [
    "CURES", "HEALTHY", "LABELS", "NAMES", "Curve", "CurveFacts", "Diagnosis", "DoublingGain",
    "StepsNeeded", "Verdict", "diagnose", "steps_needed", "steps_sentences",
]  # fmt: skip
