"""Tables of columns and rows."""

from __future__ import annotations

from routing.common.tables import csv_text, markdown_table, print_table


def test_a_table_on_the_terminal_has_title_head_and_rows(capsys):
    print_table("a title", ("name", "n", "n"), [("first", "1", "2"), ("second", "30", "4")], left=("name",), width=60)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "a title"
    assert [word for line in lines for word in line.split() if word.isalnum()] == [
        "a", "title", "name", "n", "n", "first", "1", "2", "second", "30", "4",
    ]  # fmt: skip
    print_table("t", ("n",), [("1",)], stderr=True)
    printed = capsys.readouterr()
    assert not printed.out and "1" in printed.err


def test_bars_in_cells_of_markdown_are_escaped():
    assert markdown_table(("a", "b"), [(1, "x|y")]) == "| a | b |\n| --- | --- |\n| 1 | x\\|y |"


def test_csv_has_six_digits_and_nothing_for_the_unknown():
    assert csv_text(("a", "b", "c"), [(1 / 3, None, 12345678), ("x,y", 2.0, "")]) == (
        'a,b,c\n0.333333,,12345678\n"x,y",2,\n'
    )
