"""The sentences of the report: what was best, by how much, how sure, and what it cost.

Everything said is computed from the study's records; what they do not tell is called unknown.
"""

from __future__ import annotations

import math
from collections import Counter
from statistics import median

from model.flops import CONVENTIONS
from reports.document import Bullets, Card, Cards, Table, Text
from reports.facts import (
    SEED_NOISE_NATS,
    Costs,
    Facts,
    charged_flops,
    final_loss,
    tokens_per_param,
)
from reports.style.formats import (
    DASH,
    count,
    duration,
    known,
    loss,
    percent,
    perplexity,
    plural,
    power,
    setting,
    short,
)
from reports.text import replay as text_replay
from studies.database.ledger import Amount
from studies.database.tables import Run
from studies.simulation.worlds import is_replayed, mark, notice
from trainer.config import PREDICTED
from trainer.events import RunStatus


def title(facts: Facts) -> tuple[str, str]:
    """Headline and line under it."""
    study = facts.study
    state = Counter(run.status for run in facts.trials)
    parts = [
        f"{power(study.budget_flops, 3)} training FLOPs a trial ({study.convention})",
        f"{plural(len(facts.trials), 'trial')}, {state[RunStatus.COMPLETE]} complete",
    ]
    if study.data_description:
        parts.append(study.data_description)
    return f"Study {study.name}{mark(facts.world)}", " · ".join(parts)


def simulated(facts: Facts) -> list[Text]:
    """A warning where nothing was trained."""
    return [] if facts.world is None else [Text(f"{notice(facts.world)}.", lead="Beware")]


# ── what was best ────────────────────────────────────────────────────────────────────────────


def head(facts: Facts) -> list[Cards]:
    """Loss, perplexity and bits per byte of the best trial and of the best promotion."""
    blocks = []
    if facts.best is not None:
        blocks.append(Cards(f"Best trial: number {facts.best.number}", _cards(facts.best)))
    promoted = facts.promoted
    if promoted is not None:
        caption = (
            f"Promotion {promoted.number}: the same shape, {promoted.scale:g} times the budget"
        )
        blocks.append(Cards(caption, _cards(promoted)))
    return blocks


def _cards(run: Run) -> list[Card]:
    error = run.val_loss_stderr_nats
    bits_note = "comparable across tokenizers"
    if not known(run.val_bits_per_byte):
        bits_note = "bytes a token not recorded"
    note = f"nats a token, ± {loss(error)} sampling" if known(error) else "nats a token"
    return [
        Card("Validation loss", loss(run.val_loss_nats), note),
        Card("Perplexity", perplexity(run.val_ppl), "on the same text"),
        Card("Bits per byte", loss(run.val_bits_per_byte, 3), bits_note),
        Card("Parameters", short(run.n_params), "embeddings counted"),
        Card(
            "Training tokens", short(run.planned_tokens), f"{tokens_per_param(run):.3g} each param."
        ),
    ]


def best(facts: Facts) -> list[Text | Bullets]:
    """What was best, by how much, and how sure that is."""
    winner = facts.best
    if winner is None:
        return [_no_best(facts)]
    if is_replayed(facts.world):
        return [
            text_replay.winner(facts, winner),
            Text(_by_how_much(facts, winner), "By how much?"),
        ]
    shape = winner.config.get("model_config", {})
    sizes = ", ".join(
        f"{name} {setting(shape[name])}"
        for name in ("n_layer", "n_encoder_layer", "n_decoder_layer", "n_embd", "n_head")
        if name in shape
    )
    predicted = PREDICTED[winner.config.get("architecture", "decoder")]
    rank = f"best of {len(facts.ranked)} complete trials"
    if len(facts.ranked) == 1:
        rank = "only complete trial"
    return [
        Text(
            f"is the {rank}: validation loss "
            f"{loss(winner.val_loss_nats)} nats a {predicted}, perplexity "
            f"{perplexity(winner.val_ppl)}. Its model has {short(winner.n_params)} parameters "
            f"({sizes}) and learned from {short(winner.planned_tokens)} tokens, "
            f"{tokens_per_param(winner):.3g} a parameter, in {plural(winner.num_steps, 'step')} of "
            f"{count(winner.tokens_per_step)} tokens at a peak learning rate of "
            f"{setting(winner.config.get('max_lr'))}.",
            f"Trial {winner.number}",
        ),
        Text(_by_how_much(facts, winner), "By how much?"),
        Text(_verdict(facts, winner), "How sure?"),
        Bullets(_how_sure(facts, winner)),
    ]


def _no_best(facts: Facts) -> Text:
    if not facts.n_proposals:
        return Text("Nothing was proposed yet.", "No result.")
    if not facts.trials:
        return Text(
            f"All {plural(len(facts.rejections), 'proposal')} were rejected, so nothing was "
            "trained.",
            "No result.",
        )
    state = Counter(run.status for run in facts.trials)
    told = ", ".join(f"{number} {status}" for status, number in sorted(state.items()))
    return Text(f"No trial is complete with a finite loss ({told}).", "No result.")


def _by_how_much(facts: Facts, winner: Run) -> str:
    parts = []
    rival, first = facts.rival, facts.first
    if rival is None:
        parts.append("There is no other complete configuration to compare with.")
    else:
        parts.append(f"{_gap(winner, rival)} ahead of the second, trial {rival.number}")
        if first is not None and first.id not in (winner.id, rival.id):
            if known(first.val_loss_nats):
                parts[-1] += f"; {_gap(winner, first)} ahead of the first proposal"
            else:
                parts[-1] += f" (the first proposal is {first.status}: no loss to compare with)"
        parts[-1] += "."
        if first is not None and first.id == winner.id:
            parts.append("It is the first proposal itself: the search found nothing better.")
    if len(facts.ranked) >= 5:
        middle = median(final_loss(run) for run in facts.ranked)
        worst = final_loss(facts.ranked[-1])
        parts.append(f"The middle trial has {loss(middle, 3)}, the worst {loss(worst, 3)} nats.")
    return " ".join(parts)


def _gap(winner: Run, other: Run) -> str:
    gap = final_loss(other) - final_loss(winner)
    if gap < 0.00005:
        return "Less than 0.0001 nats"
    return f"{loss(gap)} nats ({percent(math.expm1(gap))} in perplexity)"


def _verdict(facts: Facts, winner: Run) -> str:
    if len({run.val_checksum for run in facts.ranked}) > 1:
        return (
            "Not at all: the trials were measured on different validation texts (their checksums "
            "differ), so their losses do not compare."
        )
    gap, bound, noise = facts.gap_nats, facts.gap_error_bound_nats, facts.seed_noise
    if gap is None:
        return "There is nothing to compare it with."
    if noise is not None:
        if gap <= 2 * math.sqrt(2) * noise.sd_nats:
            return "Not sure: the gap to the second is no larger than what the repeats differ by."
        verdict = "Fairly: the gap to the second is larger than what the repeats differ by."
    else:
        near = sum(final_loss(r) - final_loss(winner) < SEED_NOISE_NATS for r in facts.ranked[1:])
        if near:
            return (
                f"Call it a tie with {plural(near, 'other trial')}, within {SEED_NOISE_NATS} nats "
                "of the best."
            )
        verdict = (
            f"No other trial is within {SEED_NOISE_NATS} nats, about twice what seeds differ by in "
            "published runs near 1e15 FLOPs. A repeat with another seed would tell for this study."
        )
    if bound is not None and gap < 2 * bound:
        verdict += " But the validation text is small for such a gap."
    return verdict


def _how_sure(facts: Facts, winner: Run) -> list[Text]:
    noise = facts.seed_noise
    remarks = [Text(_sampling(facts, winner), "Sampling of the validation text:")]
    if noise is None:
        text = (
            "unknown here, for no configuration was run with a second seed. In published runs near "
            "1e15 FLOPs seeds differ by 0.01 nats and more."
        )
    else:
        text = (
            f"{loss(noise.sd_nats)} nats (standard deviation over {noise.n_runs} runs of "
            f"{plural(noise.n_configs, 'repeated configuration')})."
        )
    remarks.append(Text(text, "Noise between seeds:"))
    if len(facts.ranked) > 2:
        text = (
            "the lowest of many noisy losses is a little lucky; expect a repeat to be a bit worse."
        )
        remarks.append(Text(text, "Selection:"))
    return remarks


def _sampling(facts: Facts, winner: Run) -> str:
    error = winner.val_loss_stderr_nats
    if not known(error):
        return "its error was not recorded."
    text = (
        f"{count(winner.val_tokens)} tokens leave ± {loss(error)} nats (one standard error) on the "
        "loss itself."
    )
    gap, bound = facts.gap_nats, facts.gap_error_bound_nats
    if gap is None or bound is None:
        return text
    text += (
        " The trials saw the same tokens, so their difference is known better than to the "
        f"{loss(bound)} nats of independent samples, but how much better was not recorded:"
    )
    if gap > 2 * bound:
        return text + " the gap is hardly an accident of which text was held out."
    return text + " whether the gap is an accident of which text was held out cannot be told."


# ── what did it cost ─────────────────────────────────────────────────────────────────────────


def cost(facts: Facts) -> list[Text | Table]:
    """FLOPs from the ledger, tokens, time, device."""
    groups = [("trials", facts.trials)]
    if facts.promotions:
        groups.append((plural(len(facts.promotions), "promotion"), facts.promotions))
    if len(groups) > 1:
        groups.append(("together", [*facts.trials, *facts.promotions]))
    costs = [(name, facts.costs(runs)) for name, runs in groups]
    total = costs[-1][1]
    if total.planned is None or total.spent is None:
        return [Text("The ledger has no entry: nothing was planned and nothing spent.")]
    convention = facts.study.convention
    spent = total.spent.flops(convention)  # type: ignore[arg-type]
    sentences = [
        f"{power(spent)} training FLOPs ({convention}) and {short(total.spent.tokens)} tokens",
    ]
    if known(facts.wall_seconds):
        took = duration(facts.wall_seconds)
        sentences[0] += f" in {took} from the first start to the last finish"
    open_runs = any(not run.status.is_finished for run in facts.data.runs)
    sentences[0] += " so far." if open_runs else "."
    if total.recomputed.steps:
        recomputed = total.recomputed.flops(convention)  # type: ignore[arg-type]
        sentences.append(f"{percent(recomputed / spent)} of it was done twice after interruptions.")
    sentences.append(_kept(facts))
    devices = sorted({_device(run) for run in facts.data.runs if run.device_name})
    sentences.append(f"Device: {'; '.join(devices)}." if devices else "Device: not recorded.")
    return [
        Text(" ".join(sentences)),
        Table(
            ["", "FLOPs planned", "spent", "done twice", "tokens spent", "training", "evaluation"],
            [[name, *_cost_cells(each, convention)] for name, each in costs],
            caption=f"From the ledger, in the budget's convention ({convention})",
        ),
        Table(
            ["convention", "planned", "spent", "done twice"],
            [
                [name + (" (budget)" if name == convention else ""), *_flop_cells(total, name)]
                for name in CONVENTIONS
            ],
            caption="All runs, in each way of counting, exact",
        ),
    ]


def _device(run: Run) -> str:
    extra = [run.precision or "", "compiled" if run.compiled else ""]
    told = ", ".join(part for part in extra if part)
    return f"{run.device_name} ({told})" if told else str(run.device_name)


def _kept(facts: Facts) -> str:
    shares = [
        charged_flops(run, facts.study.convention) / run.budget_flops for run in facts.data.runs
    ]
    over = sum(share > 1 for share in shares)
    if over:
        return f"{plural(over, 'run')} planned more than the budget: that must not happen."
    return f"No run planned more than its budget; the fullest used {100 * max(shares):.2f} % of it."


def _cost_cells(costs: Costs, convention: str) -> list[str]:
    def flops(amount: Amount | None) -> str:
        return DASH if amount is None else power(amount.flops(convention))  # type: ignore[arg-type]

    return [
        flops(costs.planned),
        flops(costs.spent),
        flops(costs.recomputed),
        short(costs.spent.tokens) if costs.spent is not None else DASH,
        duration(costs.train_seconds),
        duration(costs.eval_seconds),
    ]


def _flop_cells(costs: Costs, convention: str) -> list[str]:
    return [
        DASH if amount is None else f"{amount.flops(convention):,}"  # type: ignore[arg-type]
        for amount in (costs.planned, costs.spent, costs.recomputed)
    ]
