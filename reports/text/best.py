"""What was best, by how much, and how sure that is; the report's head.

Everything said is computed from the study's records; what they do not tell is called unknown.
"""

from __future__ import annotations

import math
from collections import Counter
from statistics import median

from budgetsweep.formats import (
    count,
    flops,
    known,
    loss,
    percent,
    perplexity,
    plural,
    setting,
    whole,
)
from reports.document import Bullets, Card, Cards, Text
from reports.facts import SEED_NOISE_NATS, Facts, final_loss, tokens_per_param
from studies.database.tables import Run
from trainer.config import PREDICTED
from trainer.events import RunStatus


def subtitle(facts: Facts) -> str:
    """The line under the report's title."""
    complete = sum(run.status == RunStatus.COMPLETE for run in facts.trials)
    return (
        f"{flops(facts.study.budget_flops)} training FLOPs per trial ({facts.study.convention}) · "
        f"{plural(len(facts.trials), 'trial')}, {complete} complete"
    )


def head(facts: Facts) -> list[Text | Cards]:
    """The data; loss, perplexity and bits per byte of the best trial and the best promotion."""
    blocks: list[Text | Cards] = []
    if facts.study.data_description:
        blocks.append(Text(facts.study.data_description, "Data:"))
    if facts.best is not None:
        blocks.append(Cards(f"Best trial: number {facts.best.number}", _cards(facts.best)))
    run = facts.promoted
    if run is not None:
        caption = f"Promotion {run.number}: the same shape, {run.scale:g} times the budget"
        blocks.append(Cards(caption, _cards(run)))
    return blocks


def _cards(run: Run) -> list[Card]:
    error, bits = run.val_loss_stderr_nats, run.val_bits_per_byte
    note = "nats per token" + (f", ± {loss(error)} sampling" if known(error) else "")
    bits_note = "comparable across tokenizers" if known(bits) else "bytes per token not recorded"
    per_param = f"{tokens_per_param(run):.3g} per parameter"
    return [
        Card("Validation loss", loss(run.val_loss_nats), note),
        Card("Perplexity", perplexity(run.val_ppl), "on the same validation set"),
        Card("Bits per byte", loss(bits, 3), bits_note),
        Card("Parameters", count(run.n_params), "embeddings counted"),
        Card("Training tokens", count(run.planned_tokens), per_param),
    ]


def best(facts: Facts) -> list[Text | Bullets]:
    """What was best, by how much, and how sure that is."""
    winner = facts.best
    if winner is None:
        return [_no_best(facts)]
    return [
        Text(_winner(facts, winner), f"Trial {winner.number}"),
        Text(_by_how_much(facts, winner), "By how much?"),
        Text(_verdict(facts, winner), "How sure?"),
        Bullets(_how_sure(facts, winner)),
    ]


def _no_best(facts: Facts) -> Text:
    lead = "No result."
    if not facts.n_proposals:
        return Text("Nothing was proposed yet.", lead)
    if not facts.trials:
        rejected = plural(len(facts.rejections), "proposal")
        return Text(f"All {rejected} were rejected, so nothing was trained.", lead)
    state = Counter(run.status for run in facts.trials)
    states = ", ".join(f"{number} {status}" for status, number in sorted(state.items()))
    return Text(f"No trial is complete with a finite loss ({states}).", lead)


def _winner(facts: Facts, winner: Run) -> str:
    """The winner in sentences; settings only where they were really trained with."""
    rank = f"best of {len(facts.ranked)} complete trials" if facts.ranked[1:] else (
        "only complete trial"
    )  # fmt: skip
    predicted = PREDICTED[winner.config.get("architecture", "decoder")]
    parts = [
        f"is the {rank}: validation loss {loss(winner.val_loss_nats)} nats per {predicted}, "
        f"perplexity {perplexity(winner.val_ppl)}.",
        f"Its model has {count(winner.n_params)} parameters.",
        f"It learned from {count(winner.planned_tokens)} tokens, "
        f"{tokens_per_param(winner):.3g} per parameter.",
    ]
    if facts.has_learning_rate(winner):
        shape = winner.config.get("model_config", {})
        names = ("n_layer", "n_encoder_layer", "n_decoder_layer", "n_embd", "n_head")
        sizes = ", ".join(f"{name} {setting(shape[name])}" for name in names if name in shape)
        parts[1] = f"Its model has {count(winner.n_params)} parameters ({sizes})."
        parts.append(
            f"It took {plural(winner.num_steps, 'step')} of {whole(winner.tokens_per_step)} tokens "
            f"at a peak learning rate of {setting(winner.config.get('max_lr'))}."
        )
    if winner.reason:
        parts.append(f"It {winner.reason}.")
    return " ".join(parts)


def _by_how_much(facts: Facts, winner: Run) -> str:
    rival, first = facts.rival, facts.first
    parts = ["There is no other complete configuration to compare with."]
    if rival is not None:
        ahead = f"{_gap(winner, rival)} ahead of the second, trial {rival.number}"
        if first is not None and first.id not in (winner.id, rival.id):
            if known(first.val_loss_nats):
                ahead += f"; {_gap(winner, first)} ahead of the first proposal"
            else:
                ahead += f" (the first proposal is {first.status}: no loss to compare with)"
        parts = [f"{ahead}."]
        if first is not None and first.id == winner.id:
            parts.append("It is the first proposal itself: the search found nothing better.")
    if len(facts.ranked) >= 5:
        middle = median(final_loss(run) for run in facts.ranked)
        highest = final_loss(facts.ranked[-1])
        parts.append(f"Median of the trials: {loss(middle, 3)} nats, max: {loss(highest, 3)} nats.")
    return " ".join(parts)


def _gap(winner: Run, other: Run) -> str:
    gap = final_loss(other) - final_loss(winner)
    if gap < 0.00005:
        return "Less than 0.0001 nats"
    return f"{loss(gap)} nats ({percent(math.expm1(gap))} in perplexity)"


def _verdict(facts: Facts, winner: Run) -> str:
    if facts.rival is None:
        return "There is nothing to compare it with."
    near = sum(final_loss(r) - final_loss(winner) < SEED_NOISE_NATS for r in facts.ranked[1:])
    if near:
        return (
            f"Call it a tie with {plural(near, 'other trial')}, within {SEED_NOISE_NATS} nats of "
            "the best: run these with three seeds each before you prefer one."
        )
    return (
        f"No other trial is within {SEED_NOISE_NATS} nats, about twice what seeds differ by in "
        "published runs near 1e15 FLOPs. A repeat with another seed would show it here."
    )


def _how_sure(facts: Facts, winner: Run) -> list[Text]:
    error = winner.val_loss_stderr_nats
    sampling = "not recorded."
    if known(error):
        tokens = whole(winner.val_tokens)
        sampling = f"± {loss(error)} nats (one standard error) from {tokens} tokens."
    remarks = [
        Text(sampling, "Sampling error of the validation set:"),
        Text(
            "unknown here: no configuration was run with a second seed. In published runs near "
            "1e15 FLOPs seeds differ by 0.01 nats and more.",
            "Noise between seeds:",
        ),
    ]
    if len(facts.ranked) > 2:
        lucky = "the lowest of many noisy losses is a little lucky; a repeat may be a bit worse."
        remarks.append(Text(lucky, "Selection:"))
    return remarks
