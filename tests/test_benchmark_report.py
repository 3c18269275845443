"""Figures and the page of a benchmark's rows."""

import io

import pytest
from html_pages import Page

from gist_jax.benchmark.figures import COLOURS, figures
from gist_jax.benchmark.report import write_page

FLOPS = {"none": 1.0, "prompt_cache": 0.4, "gist_cache": 0.25}  # of a batch of 1, TFLOPs
BYTES = {"none": 0, "prompt_cache": 2_000_000, "gist_cache": 1_000}


def rows(instructions=(25, 100, 400), batches=(1, 8), inputs=(64,), measured=True):
    workloads = [(n, i, b) for n in instructions for i in inputs for b in batches]
    return [row(mode, measured, *workload) for workload in workloads for mode in FLOPS]


def row(mode, measured, n, inputs, batch):
    made = dict(instruction=n, input=inputs, output=16, batch=batch, gist_tokens=1, mode=mode)
    made |= dict(first_flops=FLOPS[mode] * batch * 1e12, first_saved_flops=1 - FLOPS[mode])
    made |= dict(cache_bytes=BYTES[mode], reuses=1 + n / 100)
    if measured:
        made |= dict(first_saved=0.5, first_saved_low=0.45, first_saved_high=0.6, prompts=1000)
    if mode == "none":
        made |= {x: None for x in made if x == "reuses" or x == "prompts" or "saved" in x}
    if measured:
        seconds = dict(first_seconds=0.0123, first_seconds_low=0.012, first_seconds_high=0.0125)
        return made | seconds | dict(agreement=0.875)
    return made | {"H100_first_seconds": 0.00123, "v5e_first_seconds": None}


def lines(panel):
    """x and y of each line in the legend."""
    found = zip(*panel.get_legend_handles_labels(), strict=True)
    return {label: [list(line.get_xdata()), list(line.get_ydata())] for line, label in found}


def drawn(made):
    for figure in made.values():
        figure.savefig(io.BytesIO(), format="png", dpi=40)
    return made


def test_figures_show_the_rows():
    made = drawn(figures(rows()[::-1]))  # in any order
    assert [panel.get_title() for panel in made["saving"].axes] == ["batch 1", "batch 8"]
    for panel in made["saving"].axes:
        shown = lines(panel)
        assert shown["gist cache, FLOPs"] == [[25, 100, 400], [0.75] * 3]
        assert shown["prompt cache, FLOPs"][1] == pytest.approx([0.6] * 3)
        assert shown["gist cache, time (95 %)"][1] == [0.5] * 3
        bars = [bar for bar in panel.collections if hasattr(bar, "get_segments")]
        assert [len(bar.get_segments()) for bar in bars] == [3, 3]
        assert bars[0].get_segments()[0][:, 1] == pytest.approx([0.45, 0.6])
    assert lines(made["break_even"].axes[1])["prompt cache"][1] == [1.25, 2, 5]
    size, fit = made["memory"].axes
    assert lines(size)["gist cache"][1] == [1_000] * 3 and lines(fit)["gist cache"][1] == [1000] * 3
    drawn_lines = [x for f in made.values() for p in f.axes for x in p.get_legend_handles_labels()[0]]
    assert {line.get_color() for line in drawn_lines} == set(COLOURS.values())


def test_all_batches_are_in_view_and_titles_say_what_is_not():
    table = rows(batches=(1, 2, 4, 8, 16), inputs=(64, 128))
    last = [row for row in table if row["input"] == 64][-1]
    last |= dict(first_saved=-3.0, first_saved_low=-4.0, first_saved_high=-2.0, reuses=70)
    made = drawn(figures(table))
    assert len(made["saving"].axes) == len(made["break_even"].axes) == 5
    assert made["saving"].axes[-1].get_ylim()[0] < -4 and made["break_even"].axes[-1].get_ylim()[1] > 70
    assert "input 64 (not 128), output 16" in made["saving"].get_suptitle()
    assert lines(made["saving"].axes[0])["gist cache, FLOPs"][0] == [25, 100, 400]
    assert "batch 1 (not 2, 4, 8, 16)" in made["memory"].get_suptitle()


@pytest.mark.parametrize("measured", [True, False])
def test_one_workload(measured):
    made = drawn(figures(rows([26], [1], measured=measured)))
    assert lines(made["saving"].axes[0])["gist cache, FLOPs"] == [[26], [0.75]]
    assert len(lines(made["saving"].axes[0])) == (4 if measured else 2)
    assert len(made["memory"].axes) == (2 if measured else 1)


def test_missing_values_leave_gaps():
    table = rows(batches=[1])
    saved = ("first_saved", "first_saved_low", "first_saved_high")
    table[4] |= dict.fromkeys(("first_saved_flops", *saved, "reuses", "prompts"))  # prompt_cache at 100
    made = drawn(figures(table))
    gap = pytest.approx([0.6, float("nan"), 0.6], nan_ok=True)
    assert lines(made["saving"].axes[0])["prompt cache, FLOPs"][1] == gap
    assert "never" in made["break_even"].get_suptitle()
    assert "never" not in figures(rows())["break_even"].get_suptitle()
    drawn(figures([dict.fromkeys(x, None) | {k: x[k] for k in list(x)[:6]} for x in table]))


@pytest.mark.parametrize("measured", [True, False])
def test_page(tmp_path, measured):
    table = rows(batches=[1], measured=measured)
    table[-1]["mode"] = "<script>"
    environment = {"device <b>": "a <i> & b"}
    write_page(tmp_path / "made" / "page.html", table, figures(table), environment)
    page = Page((tmp_path / "made" / "page.html").read_text(encoding="utf-8"))
    assert [x.partition(",")[0] for x in page.images] == ["data:image/png;base64"] * 3
    assert page.tags.count("tr") == 1 + 9 and page.tags.count("td") == 9 * page.tags.count("th")
    expected = [
        "<script>",
        "device <b>",
        "a <i> & b",
        "1 TFLOPs",
        "400 GFLOPs",
        "75.0 %",
        "2 MB",
        "1 kB",
    ]
    expected += ["12.3 ms (12 ms to 12.5 ms)", "87.5 %"] if measured else ["1.23 ms", "H100"]
    assert [x for x in expected if x not in page.text] == []
    assert "script" not in page.tags and "v5e" not in page.text  # of which there are no values


def test_no_page_is_left_behind(tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text("before")
    monkeypatch.setattr("pathlib.Path.write_text", lambda path, *_, **__: path.touch() or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_page(page, rows(), {}, {})
    assert page.read_text() == "before" and list(tmp_path.iterdir()) == [page]
