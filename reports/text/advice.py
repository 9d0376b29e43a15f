"""What to do next: rules that look at the study's records, each with its reason.

A rule says something only where the records give cause; none knows more than they do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from budgetsweep.formats import flops, known, percent, plural, rate, setting
from reports.document import Bullets, Text
from reports.facts import BEST_FEW, Facts, as_number, has_sampled_softmax, tokens_per_param
from reports.text.search import REASONS
from studies.database.tables import Run
from studies.space.search_space import Parameter
from trainer.events import RunStatus

TRIALS_PER_PARAMETER = 3
FEWEST_TRIALS = 12
"""A search of fewer complete trials, or of fewer than three per varied parameter, has hardly
started (*assumption*; TPE itself draws its first ten at random)."""

TOKENS_PER_PARAM = 20.0
"""Training tokens per parameter at which published models of one budget are best (Hoffmann et al.
2022); 14 to 23 near 1e15 to 1e17 FLOPs (Porian et al. 2024)."""

FAR_FROM_RATIO = 5.0
"""Factor from `TOKENS_PER_PARAM` beyond which a shape is called too small or too large."""

DEFAULT_SCALE = 100.0
EDGE_SHARE = 0.04
MANY_REJECTED = 0.3


def advice(facts: Facts) -> list[Bullets]:
    """Remarks, the most urgent first; at least one."""
    remarks = [
        *_nothing_yet(facts),
        *_failures(facts),
        *_rejections(facts),
        *_few_trials(facts),
        *_edges(facts),
        *_shape_for_promotion(facts),
        *_promotions(facts),
    ]
    return [Bullets(remarks or [Text("Nothing in these records asks for another step.")])]


def _nothing_yet(facts: Facts) -> Iterator[Text]:
    if facts.ranked:
        return
    open_runs = [r for r in facts.trials if r.status in ("queued", "running", "interrupted")]
    if open_runs or not facts.n_proposals:
        yield Text(
            "The same budgetsweep search command continues where it stopped; report again then.",
            "Continue.",
        )
    elif not facts.trials:
        reason, number = Counter(r.reason for r in facts.rejections).most_common(1)[0]
        yield Text(
            f"{number} of {len(facts.rejections)} proposals were refused as "
            f"{REASONS.get(reason, reason)}. budgetsweep search --dry-run shows what share of a "
            "space is admitted, at no cost.",
            "Change the space or the budget.",
        )


def _failures(facts: Facts) -> Iterator[Text]:
    failed = [run for run in facts.trials if run.status == RunStatus.FAILED]
    if not failed:
        return
    diverged = [r for r in failed if "nan" in (r.reason or "") or "inf" in (r.reason or "")]
    rates = [value for r in diverged if (value := as_number(r.config.get("max_lr"))) is not None]
    if rates:
        yield Text(
            f"{plural(len(diverged), 'trial')} diverged (NaN), the first at a learning rate of "
            f"{rate(min(rates))}. Lower the upper end of max_lr, or lengthen the warm-up.",
            "Training became unstable.",
        )
    memory = [r for r in failed if "memory" in (r.reason or "").lower()]
    if memory:
        yield Text(
            f"{plural(len(memory), 'trial')} ran out of memory although the estimate admitted it: "
            "something else uses the device, or batch_size is too large.",
            "Memory ran out.",
        )
    if len(failed) > len(facts.trials) / 4 and not diverged and not memory:
        yield Text(
            f"{len(failed)} of {len(facts.trials)} trials failed; the first: "
            f"{failed[0].reason or 'no reason recorded'}.",
            "Fix what fails before you search on.",
        )


def _rejections(facts: Facts) -> Iterator[Text]:
    number = len(facts.rejections)
    if not facts.trials or number < 5 or number < MANY_REJECTED * facts.n_proposals:
        return
    reason, most = Counter(r.reason for r in facts.rejections).most_common(1)[0]
    cures = {
        "over_budget": "set num_training_steps to fill, so that every shape fits the budget",
        "invalid_shape": "search head_dim instead of n_head, and steps of n_embd that it divides",
        "invalid_value": "narrow the ranges to values that a run accepts",
        "out_of_memory": "lower the upper ends of batch_size and seq_len",
        "too_little_validation_data": "prepare more validation data or shorten seq_len",
        "too_many_epochs": "prepare more data, or raise the smallest n_embd",
        "duplicate": "the space is small: widen it, or stop here",
        "no_run": "the table does not have every size at every budget; nothing is wrong",
    }
    yield Text(
        f"{percent(number / facts.n_proposals)} of the proposals were refused, "
        f"{percent(most / number)} of them as {REASONS.get(reason, reason)}. They cost nothing and "
        f"teach the sampler nothing: {cures.get(reason, 'see the examples above')}.",
        "Many proposals were rejected.",
    )


def _few_trials(facts: Facts) -> Iterator[Text]:
    number = len(facts.ranked)
    wanted = max(FEWEST_TRIALS, TRIALS_PER_PARAMETER * len(facts.varied))
    if 0 < number < wanted:
        whole = "" if number == len(facts.complete_trials) else " of the whole budget"
        yield Text(
            f"{plural(number, 'complete trial')}{whole} for "
            f"{plural(len(facts.varied), 'varied parameter')}; about {wanted} are a start. The "
            "same search command with a larger --trials continues.",
            "Too few trials.",
        )


def _edges(facts: Facts) -> Iterator[Text]:
    """Parameters whose best value lies at the edge of what was allowed."""
    if len(facts.ranked) < 3:
        return
    found: list[str] = []
    names = sorted(facts.parameters, key=lambda name: name != "max_lr")
    for name in names:
        sides = [edge_side(facts.parameters[name], r.params.get(name)) for r in facts.ranked]
        side = sides[0]
        if side is None:
            continue
        few = sides[:BEST_FEW]
        best = setting(facts.ranked[0].params[name])
        agree = f"{few.count(side)} of the best {len(few)}"
        found.append(f"{name} = {best}, its {side} end ({agree} there)")
        if name == "max_lr":
            way = "Raise its upper end" if side == "upper" else "Lower its lower end"
            yield Text(
                f"The best trial has {found.pop()}. {way}: every other choice depends on it.",
                "The learning rate is at the edge of its range.",
            )
    if found:
        yield Text(
            f"The best trial has {'; '.join(found)}. The optimum may lie beyond: widen these "
            "ranges where the other good trials agree.",
            "The best lies at the edge of the space.",
        )


def edge_side(entry: Parameter, value: object) -> str | None:
    """`lower` or `upper` where the value is at an end of its range that could be moved."""
    number = as_number(value)
    if number is None or entry.is_fixed:
        return None
    if entry.values is not None:
        numbers = [as_number(choice) for choice in entry.values]
        choices = [choice for choice in numbers if choice is not None]
        if len(choices) < 3 or len(choices) < len(numbers):
            return None
        low, high, log, slack = min(choices), max(choices), False, 0.0
    else:
        if entry.min is None or entry.max is None or entry.min == entry.max:
            return None
        low, high, log = float(entry.min), float(entry.max), entry.is_log
        slack = 0.0 if entry.is_integer or entry.stride is not None else EDGE_SHARE
    if log:
        place = math.log(number / low) / math.log(high / low) if number > 0 else 0.0
    else:
        place = (number - low) / (high - low)
    natural_low = low == 0 or (entry.is_integer and low == 1)
    if place <= slack:
        return None if natural_low else "lower"
    return "upper" if place >= 1 - slack and high != 1.0 else None


def _shape_for_promotion(facts: Facts) -> Iterator[Text]:
    """Small budgets prefer shapes that are too small for large ones; a law says which instead."""
    best = facts.best
    if best is None or facts.promotions or facts.law or not facts.has_learning_rate(best):
        return
    yield Text(
        f"The shape that wins at {flops(facts.study.budget_flops)} FLOPs is usually too small "
        f"for {DEFAULT_SCALE:.0f} times as many: in published runs the ranking of shapes turns "
        "round between the two. Search on several budget levels (--rungs), or promote a larger "
        "trial with --trial N, before you spend it.",
        "Promote with care.",
    )


def _promotions(facts: Facts) -> Iterator[Text]:
    for run in facts.promotions:
        lead = f"{run.kind.capitalize()} {run.number}:"
        if run.status == RunStatus.FAILED:
            yield Text(
                f"it failed ({run.reason or 'no reason recorded'}). Promote again with a lower "
                "learning rate (--set max_lr=…) or another trial.",
                lead,
            )
        elif run.status != RunStatus.COMPLETE:
            yield Text("the same budgetsweep promote command continues it.", lead)
        else:
            yield from _finished_promotion(facts, run, lead)


def _finished_promotion(facts: Facts, run: Run, lead: str) -> Iterator[Text]:
    before, after = facts.trial_of(run).val_loss_nats, run.val_loss_nats
    if known(before) and known(after) and after >= before:
        yield Text(
            "it ended no better than its trial in spite of the larger budget: its learning rate "
            "is the first suspect. Try half and a quarter of it.",
            lead,
        )
        return
    # A law of the study's own runs says more about the shape than a rule of thumb.
    by_rule = not has_sampled_softmax(run) and facts.law is None
    ratio = tokens_per_param(run) if by_rule else TOKENS_PER_PARAM
    if ratio < TOKENS_PER_PARAM / 2:
        yield Text(
            f"{ratio:.3g} tokens per parameter leave this model undertrained: a smaller shape "
            "would reach a lower loss with the same budget, or this one with a larger.",
            lead,
        )
    elif ratio > FAR_FROM_RATIO * TOKENS_PER_PARAM:
        yield Text(
            f"{ratio:,.0f} tokens per parameter are far more than the {TOKENS_PER_PARAM:.0f} at "
            f"which a budget buys most: the shape chosen at the small budget is too small for this "
            "one. Promote a larger trial (--trial N) and compare.",
            lead,
        )
    if known(run.epochs) and run.epochs > 4:
        yield Text(
            f"it trained for {run.epochs:.2g} epochs; beyond four, repeated data teaches little. "
            "Prepare more.",
            lead,
        )
    if facts.has_learning_rate(run):
        yield Text(
            "its learning rate follows a rule, not a search: a run at half and one at twice the "
            "learning rate, at a tenth of the budget, would show whether the rule holds here.",
            lead,
        )
