"""The sections of the report, in order: the registry of its texts and figures.

A figure or a text is a function of the facts; it is in the report once it stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reports.document import Block
from reports.facts import Facts
from reports.figures import runs, space, study_scaling
from reports.style.theme import Chart, NoChart
from reports.text import advice, best, cost, curves, promotion, provenance, scaling, search

MakeText = Callable[[Facts], Sequence[Block]]
MakeFigure = Callable[[Facts], Chart | NoChart]


@dataclass(frozen=True)
class Section:
    """A question, and what answers it: texts first, then figures."""

    question: str
    texts: Sequence[MakeText]
    figures: Sequence[MakeFigure] = ()


SECTIONS = (
    Section("What was best?", [best.best], [runs.history, runs.learning_curves]),
    Section("What do the curves say?", [curves.curves]),
    Section("What did it cost?", [cost.cost]),
    Section(
        "What was tried?",
        [search.tried, search.best_few, search.remarks],
        [space.isoflop, space.learning_rate, space.importance, runs.schedule],
    ),
    Section("Why were proposals rejected?", [search.rejected], [runs.proposals]),
    Section("What failed?", [search.failed]),
    Section(
        "What is predicted for a larger budget?",
        [scaling.answers, scaling.scores],
        [study_scaling.isoflop_fit, study_scaling.compute_frontier],
    ),
    Section("What did the larger budget bring?", [promotion.promotions]),
    Section("What to do next?", [advice.advice]),
    Section("Where this comes from", [provenance.provenance, provenance.best_configuration]),
)

FIGURES = tuple(figure for section in SECTIONS for figure in section.figures)
