from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from reports.document import (
    Code,
    Document,
    Heading,
    Picture,
    Table,
    Text,
    clean,
    to_html,
    to_markdown,
)
from reports.style.theme import Chart


class Page(HTMLParser):
    """Tags, attributes and the text of a page, as a browser would see them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text, self.hidden = [], [], [], 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.hidden += tag == "style"

    def handle_endtag(self, tag):
        self.hidden -= tag == "style"

    def handle_data(self, data):
        if not self.hidden:
            self.text.append(data)


def render_markdown(markdown):
    """HTML as GitHub would show it, by an independent parser."""
    return (
        MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
    )


def words(text):
    return clean(text).split()


@given(st.text())
def test_any_text_stays_what_it_is_in_markdown(text):
    """A table cell shows exactly the words put into it, whatever they are."""
    table = to_markdown(Document("t", "s", [Table(["a", "b"], [["x", text]])]), str)
    page = Page(render_markdown(table))
    assert set(page.tags) == {"h1", "p", "table", "thead", "tbody", "tr", "th", "td"}
    cells = "".join(page.text).split("x", 1)[1]
    assert cells.split() == words(text)


@given(st.text())
def test_any_text_stays_what_it_is_in_html(text):
    page = Page(to_html(Document("t", "s", [Heading(text)])))
    shown = "".join(page.text).split("s", 1)[1]
    assert shown.split() == words(text)


@given(st.text(alphabet=st.characters(codec=None, categories=("Cs", "Cc", "L"))))
def test_clean_text_can_be_written_anywhere(text):
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert all(character.isprintable() or character == "\n" for character in cleaned)


@given(st.text(alphabet="`~\nyaml: "))
def test_code_cannot_close_its_fence(text):
    rendered = render_markdown(
        to_markdown(Document("t", "s", [Code("c", text), Text("after")]), str)
    )
    page = Page(rendered)
    assert page.tags.count("code") == 1
    assert page.tags[-1] == "p"


def test_a_figure_has_its_drawing_and_words():
    chart = Chart("history", "the finding", "what is drawn", lambda figure: None)
    page = Page(to_html(Document("t", "s", [Picture(chart, "<svg/>")])))
    assert page.tags.count("img") == 1
    assert ("alt", "the finding. what is drawn") in page.attributes


def test_bold_cells_are_bold_in_both():
    document = Document("t", "s", [Table(["", "n"], [["a", "1"], ["b", "2"]], frozenset({(1, 1)}))])
    assert "<td><strong>2</strong></td>" in to_html(document)
    assert "| b | **2** |" in to_markdown(document, str)
