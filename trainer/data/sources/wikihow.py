"""Articles of WikiHow as pairs: title and headline -> text. Pure functions, no torch.

The data set (Koupaee and Wang 2018, arXiv:1810.09305) is one file, wikihowAll.csv, with the
columns headline (the summary sentences), title and text. Its authors' own cleaning is process.py of
https://github.com/mahnazkoupaee/WikiHow-Dataset; what is done here beyond that is said below.
"""

from __future__ import annotations

import re

COLUMNS = ("headline", "title", "text")
LONGEST_HEADLINE = 0.75
"""An article is used where its headline is shorter than this share of its text (process.py)."""

# process.py has [.]+[\n]+[,], which takes quadratic time on a long row of full stops.
_EXTRA_COMMA = re.compile(r"(?<![.])[.]++\n++,")
_BLANK_LINES = re.compile(r"\n{3,}")
_NUMBERED = re.compile(r"(.*(?:[^\W\d_]|[)\]\"'”’!?]))[0-9]+", re.DOTALL)
# Words that end with a digit of their own; an *assumption* about the titles, by no means complete.
_OWN_DIGIT = r"\b(?:mp[34]|ps[1-5]|co2|b12|h1n1)"
_NAME = re.compile(rf".*{_OWN_DIGIT}", re.DOTALL | re.IGNORECASE)
_NUMBERED_NAME = re.compile(rf"(.*{_OWN_DIGIT})[0-9]+", re.DOTALL | re.IGNORECASE)


def make_pair(headline: str, title: str, text: str) -> tuple[str, str] | None:
    """Source and target of an article: title and headline on lines of their own; the text.

    All are cleaned. None for an article that process.py leaves out: its headline, as it stands in
    the file, is not clearly shorter than its text (`LONGEST_HEADLINE`, in characters). None also
    for one without a headline.
    """
    if len(headline) >= LONGEST_HEADLINE * len(text):
        return None
    summary = clean_headline(headline)
    article = clean_text(text)
    if not summary or not article:
        return None
    return f"{clean_title(title)}\n{summary}", article


def clean_headline(headline: str) -> str:
    """Summary sentences, one a line: `.,` becomes `.` and blank lines go, as in process.py.

    White space around a line goes too. Case is kept; process.py writes its summaries in lower case.
    """
    lines = _plain(headline).replace(".,", ".").split("\n")
    return "\n".join(line for line in map(str.strip, lines) if line)


def clean_text(text: str) -> str:
    """Text of an article: full stops, line ends and a comma become `.` and a line end (process.py).

    White space around a line goes too, and of several blank lines one stays.
    """
    lines = _EXTRA_COMMA.sub(".\n", _plain(text)).split("\n")
    return _BLANK_LINES.sub("\n\n", "\n".join(map(str.strip, lines))).strip()


def clean_title(title: str) -> str:
    """Title on one line, without the number that wikihowAll.csv gives to each article of one title.

    `How to Draw a Cat2` is the second article of `How to Draw a Cat`. Digits count as such a number
    right after a letter or a closing mark; `Windows 10` and `MP3` keep theirs. Not in process.py.
    """
    title = " ".join(title.split())
    if _NAME.fullmatch(title):
        return title
    numbered = _NUMBERED_NAME.fullmatch(title) or _NUMBERED.fullmatch(title)
    return numbered[1] if numbered else title


def split_key(source: str) -> str:
    """What decides the side of a pair: the title, the first line of its source, without case."""
    return source.partition("\n")[0].casefold()


def _plain(text: str) -> str:
    """Line ends as in Unix."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
