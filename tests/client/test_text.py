from hypothesis import given
from hypothesis import strategies as st

from vitscope.client.text import drawable, printable, shortened, table


def test_nothing_printable_steers_a_terminal() -> None:
    assert printable("a\x1b[31m\nb") == "a�[31m�b"
    assert printable("füchse 狐") == "füchse 狐"


def test_drawable_keeps_to_the_font() -> None:
    assert drawable("Žluťoučký · kůň…") == "Zlutoucky · kun…"
    assert drawable("狐\n\0\1") == "????"


@given(st.text(st.characters(codec="ascii"), max_size=60), st.integers(1, 70))
def test_shortened_fits_and_keeps_both_ends(text: str, room: int) -> None:
    short = shortened(text, lambda part: len(part) <= room)
    assert len(short) <= room
    if short != text:
        head, _, tail = short.partition("…")
        assert len(short) == room
        assert text.startswith(head)
        assert text.endswith(tail)


def test_table_aligns_numbers_right_and_text_left() -> None:
    assert table(["n", "name"], [(5, "fox"), (12, "a\tb")]).splitlines() == [
        " n  name",
        " 5  fox",
        "12  a�b",
    ]


def test_a_table_without_rows_is_its_headings() -> None:
    assert table(["n", "name"], []) == "n  name"
