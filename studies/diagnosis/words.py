"""How many steps suffice, in words."""

from __future__ import annotations

from studies.diagnosis.steps import StepsNeeded


def steps_sentences(steps: StepsNeeded | None) -> list[str]:
    """Two sentences: when the loss was as good as at its end, and what twice the steps bring."""
    if steps is None:
        return []
    last = steps.last_step
    said = [
        f"The {steps.series} loss stayed within {steps.close_nats:.2g} nats of its last value "
        f"({steps.last_nats:.3f}) from step {steps.enough_step:,} of {last:,} on."
    ]
    law = steps.extrapolation
    unknown = "What twice the steps would bring is not carried by the data:"
    if law is None:
        return [*said, f"{unknown} too few points for a fit."]
    if not law.flattens:
        return [*said, f"{unknown} the loss does not flatten as a power law does."]
    fit = f"a power law over steps {law.from_step:,} to {law.to_step:,}, {law.n_points} points"
    interval = f"{law.low_nats:.3f} to {law.high_nats:.3f} nats"
    if not law.is_carried:
        return [*said, f"{unknown} {interval} ({fit})."]
    gain = f"Twice the steps would bring about {law.gain_nats:.3f} nats less"
    return [*said, f"{gain} ({interval}; {fit})."]
