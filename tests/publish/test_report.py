import json
import re
from io import BytesIO
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import snipnb
from snipnb._files import write_atomically
from snipnb.publish import captions, ledger, published, report, sentences, style
from snipnb.publish.evidence import Finding
from snipnb.studies.salience_derivation import draw


@pytest.fixture
def written(monkeypatch, tmp_path):
    monkeypatch.setenv("SNIPNB_OUTPUT", str(tmp_path))
    namespace = {
        "profile": "smoke",
        "threads": 2,
        "sample": True,
        "init_seed": 0,
        "num_images": 5,
        "per_tensor": 1,
        "num_factors": 2,
        "other": object(),
    }
    return report.begin("01_salience_derivation", namespace), tmp_path


CAPTIONS = {
    "small_one": {"note": "{num_images} images; {top:.1f}; profile {profile}", "alt": "A falling line."},
    "small_two": {"note": "{seeds:,} seeds", "alt": "A line of {seeds:,} seeds."},
}
SEEN = []  # what was drawn


@pytest.fixture
def captioned(written, monkeypatch):
    monkeypatch.setattr(captions, "load_captions", lambda study: CAPTIONS)
    monkeypatch.setattr(draw, "small_one", small_figure, raising=False)
    monkeypatch.setattr(draw, "small_two", two_frames, raising=False)
    SEEN.clear()
    return written


def small_figure(*frames, **settings):
    figure, axis = plt.subplots(figsize=(2, 1))
    axis.plot([0, 1], [1, 0], label="a")
    axis.legend()
    if frames:
        style.headline(figure, "It falls by 1")
    SEEN.append((frames, figure, settings))
    return figure


def two_frames(frame, other):
    return small_figure(frame, other)


def test_begin_knows_the_parameters(written):
    current, folder = written
    assert current.profile == "smoke"
    assert "other" not in current.parameters
    assert current.folder == folder


def test_a_figure_is_drawn_from_its_csv_in_three_forms_with_its_alternative_text(captioned):
    current, folder = captioned
    frame = pd.DataFrame({"x": [0.1, 1 / 3], "n": [1, 2]})
    picture = current.figure("small_one", frame, top=1.25)
    assert (folder / "01_salience_derivation" / "small_one.csv").read_text() == "x,n\n0.1,1\n0.33333333,2\n"
    (drawn,), figure, settings = SEEN[-1]
    assert list(drawn["x"]) == [0.1, 0.33333333]
    assert figure.get_supxlabel().split() == ["5", "images;", "1.2;", "profile", "smoke"]
    assert settings == {"top": 1.25}
    assert b"A falling line." in (folder / "01_salience_derivation" / "small_one.png").read_bytes()
    assert "A falling line." in (folder / "01_salience_derivation" / "small_one.svg").read_text()
    data, metadata = picture._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert metadata["image/png"]["alt"] == data["text/plain"] == "It falls by 1. A falling line."
    assert not plt.get_fignums()  # closed


def test_a_headline_stands_above_the_legend_and_that_above_the_axes():
    style.use_house_style()
    figure, axis = plt.subplots(figsize=(4, 2), layout="constrained")
    axis.plot([0, 1], label="a line")
    axis.set_title("a panel")
    figure.legend(loc="outside upper center")
    style.headline(figure, "A finding that is so long that it takes more than one line of the figure, with 1 number")
    style.footnote(figure, "n = 2")
    figure.draw_without_rendering()
    (text,) = (text for text in figure.texts if text.get_gid())
    (legend,) = figure.legends
    boxes = [part.get_window_extent() for part in (text, legend, axis._left_title, axis, figure._supxlabel)]
    assert all(above.y0 > below.y1 for above, below in pairwise(boxes))
    assert figure.bbox.contains(*boxes[0].min)
    assert figure.bbox.contains(*boxes[0].max)
    assert style.headline_of(figure).startswith("A finding that is so long that it takes more than one line")
    assert text.get_text().count("\n") >= 1
    plt.close(figure)


def test_a_figure_without_a_headline_has_none():
    figure, _ = plt.subplots()
    assert style.headline_of(figure) == ""
    plt.close(figure)


def test_further_frames_are_taken_from_where_they_stand(captioned):
    current, folder = captioned
    frame, table = pd.DataFrame({"x": [1.0, 2.0]}), pd.DataFrame({"y": [1 / 3]})
    current.table(table, "numbers")
    for other, file in (
        (table, "01_salience_derivation/numbers.csv"),
        (published.reported("figure1"), "reported/figure1_reported.csv"),
        (pd.DataFrame({"z": [0]}), "01_salience_derivation/small_two_other.csv"),
    ):
        current.figure("small_two", frame, other, caption={"seeds": 1000})
        assert current.drawn["figures"]["small_two"]["frames"] == ["01_salience_derivation/small_two.csv", file]
        assert list(SEEN[-1][0][1]) == list(other)
    assert SEEN[-1][1].get_supxlabel() == "1,000 seeds"
    assert len(list(folder.rglob("*.csv"))) == 3


def test_a_table_comes_back_from_its_csv_as_it_was(written):
    current, _ = written
    frame = pd.DataFrame(
        {
            "layer": ["NA", "None", "nan"],
            "text": ["a", "", "c"],
            "ok": [True, False, True],
            "whole": [1, 2, 3],
            "missing": [0.5, np.nan, 1e-300],
            "float": [0.1, 2.5, 1 / 3],
        }
    )
    current.data(frame, "types")
    back = current._read("01_salience_derivation/types.csv")
    pd.testing.assert_frame_equal(back, frame, rtol=1e-7)


def test_a_caption_has_a_value_for_each_field_and_a_field_for_each_value(captioned, monkeypatch):
    current, _ = captioned
    frame = pd.DataFrame({"x": [1]})
    with pytest.raises(ValueError, match=r"the caption of 'small_two' in .*salience_derivation has no value for seeds"):
        current.figure("small_two", frame, frame)
    with pytest.raises(ValueError, match=r"the caption of 'small_one' in .* has no field seeds"):
        current.figure("small_one", frame, top=1, caption={"seeds": 3})
    with pytest.raises(
        ValueError, match=r"salience_derivation\.draw has no function 'small_three'; a figure is drawn by"
    ):
        current.figure("small_three", frame)
    monkeypatch.delitem(CAPTIONS, "small_two")
    with pytest.raises(ValueError, match=r"captions\.yaml of .*salience_derivation has no figure 'small_two'"):
        current.figure("small_two", frame, frame)


def test_figures_are_byte_stable(tmp_path):
    style.use_house_style()
    files = []
    for name in ("a", "b"):
        for kind in ("png", "svg"):
            figure = small_figure()
            (tmp_path / f"{name}.{kind}").write_bytes(style.render(figure, kind, alt="x"))
            plt.close(figure)
        files.append([(tmp_path / f"{name}.{kind}").read_bytes() for kind in ("png", "svg")])
    assert files[0] == files[1]
    assert b"matplotlib" not in files[0][0].lower()


def test_pictures_have_few_colours_unless_shades_would_be_lost(tmp_path):
    style.use_house_style()
    figure = small_figure()
    (tmp_path / "few.png").write_bytes(style.render(figure, "png", alt="A line."))
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=style.PNG_DPI)
    plt.close(figure)
    with Image.open(tmp_path / "few.png") as few, Image.open(stream) as all_colours:
        assert (few.mode, few.text) == ("P", {"Description": "A line."})
        assert few.info["dpi"] == all_colours.info["dpi"]
        off = np.abs(np.asarray(few.convert("RGB"), int) - np.asarray(all_colours.convert("RGB"), int))
        assert off.mean() < style.MOST_LOST
        assert few.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    figure, axes = plt.subplots()
    axes.imshow(np.random.default_rng(0).random((40, 40, 3)))
    (tmp_path / "many.png").write_bytes(style.render(figure, "png", alt="x"))
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=style.PNG_DPI)
    plt.close(figure)
    with Image.open(tmp_path / "many.png") as many, Image.open(stream) as all_colours:
        assert np.array_equal(np.asarray(many), np.asarray(all_colours.convert("RGB")))


def test_a_table_keeps_whole_numbers_whole(written):
    current, folder = written
    frame = pd.DataFrame({"layer": ["a", "b"], "m": [61_706, 6], "p": [0.000123456, 23_456.7], "ok": [True, False]})
    shown = current.table(frame, "numbers", digits=3)
    text = (folder / "01_salience_derivation" / "numbers.md").read_text()
    assert shown.text + "\n" == text
    rows = text.splitlines()
    assert [cell.strip() for cell in rows[2].strip("|").split("|")] == ["a", "61,706", "1.2 × 10⁻⁴", "yes"]
    assert [cell.strip() for cell in rows[3].strip("|").split("|")] == ["b", "6", "23,457", "no"]
    paper = (folder / "01_salience_derivation" / "numbers.tex").read_text().splitlines()
    assert paper[0].startswith("% needs")
    assert paper[1:4] == [r"\begin{tabular}{lrrr}", r"\toprule", r"layer & m & p & ok \\"]
    assert paper[5:7] == [r"a & 61,706 & 1.2 $\times$ 10$^{-4}$ & yes \\", r"b & 6 & 23,457 & no \\"]
    assert current.data(frame, "long_one").text == "2 rows: `01_salience_derivation/long_one.csv`"
    assert not (folder / "01_salience_derivation" / "long_one.md").exists()


def test_latex_escapes_what_it_would_read(written):
    current, folder = written
    current.table(pd.DataFrame({"error_%": ["a_b & c", "{x}^2 ~ 50 %"]}), "special")
    text = (folder / "01_salience_derivation" / "special.tex").read_text()
    assert r"error \%" in text
    assert r"a\_b \& c" in text
    assert r"\{x\}\textasciicircum 2 \textasciitilde \space 50 \%" in text


def test_names_are_stems(written):
    current, folder = written
    for name in ("../escape", "a.b", "", "é"):
        with pytest.raises(ValueError, match="a name may hold only ASCII letters"):
            current.table(pd.DataFrame({"a": [1]}), name)
    assert not any(folder.iterdir())


FOUND = {
    "C6": {"additive_overlap": 0.4, "median_step_error": 0, "largest_step_error": 0},
    "C7": {"additive_overlap": 0.4, "median_step_error": 0, "largest_step_error": 0},
    "C8": {"relative_difference": 0, "signed_overlap": 0.3},
    "C10": {"masks_changed": 0, "distance_of_sum_from_100": 0},
    "C14": {"share_of_saliences_at_one": 0, "loss_difference_at_one": 0},
    "C15": {"symbolic_differences": 0, "relative_difference": 0},
    "C16": {"operations_over_one_gradient": 1, "relative_difference": 0},
    "C17": {"symbolic_differences": 0, "median_remainder_order": 2},
}


def test_verdicts_need_every_claim_existing_figures_and_published_rows(written, monkeypatch):
    current, folder = written
    cases = pd.DataFrame({"case": ["linear", "other"], "error": [1 / 3 * 1e-12, 1.0]})
    with pytest.raises(
        ValueError, match=r"points at 01_salience_derivation/nothing\.png, which this notebook has not written"
    ):
        current.claim("C23", cases, figure="nothing.png")
    with pytest.raises(ValueError, match=r"points at 01_salience_derivation/linearity\., which"):
        current.claim("C23", cases, figure="linearity")
    with pytest.raises(ValueError, match="C1 is not among the claims of 01_salience_derivation: C6, C7"):
        current.claim("C1", cases)
    with pytest.raises(
        ValueError, match=r"table 1 of C23 is not in any file; write it with report\.table or report\.data"
    ):
        current.claim("C23", cases)
    current.data(cases.assign(error=1.0), "cases")
    current.claim("C23", cases.assign(error=1.0))
    current.data(cases, "cases")
    current.claim("C23", cases)  # said again: replaced
    (entry,) = current.entries
    assert entry["rows"] == {
        "01_salience_derivation/cases.csv": ledger.digest("case,error\nlinear,3.3333333e-13\nother,1\n")
    }
    with pytest.raises(ValueError, match="has no verdict on C10, C14"):
        current.verdicts()
    monkeypatch.setattr(
        ledger, "function_of", lambda claim, notebook: lambda *frames, **settings: Finding(FOUND[claim])
    )
    for claim in FOUND:
        current.claim(claim, cases)
    assert current.verdicts().text.count("\n| C") == 9
    current.provenance(images="0123456789abcdef01")
    entries = json.loads((folder / "claims" / "01_salience_derivation.json").read_text())
    assert [(e["verdict"], e["data"]) for e in entries if e["id"] == "C23"] == [("correct", "0123456789abcdef01")]


def test_published_values_and_benchmarks_are_evidence_where_they_stand(written):
    current, _ = written
    assert current._find(published.reported("figure2"), "bench", "reported") == "reported/figure2_reported.csv"
    assert current._find(report.benchmark("snip"), "reported", "bench") == "bench/snip.csv"


def test_provenance_names_versions_and_parameters_but_no_time(written):
    current, folder = written
    frame = current.provenance(images="0123456789abcdef01")
    assert frame.loc["parameter num_images", "value"] == "5"
    assert frame.loc["torch", "value"]
    assert "sample" in frame.loc["images", "value"]
    assert not [name for name in frame.index if "second" in name or "date" in name or "memory" in name]
    assert json.loads((folder / report.RUN_FILE).read_text())["peak_memory_mb"] > 0


def test_what_was_drawn_is_kept_so_that_it_can_be_drawn_again(captioned):
    current, folder = captioned
    limits = {0.1: 1 / 3, 0.95: 2}
    current.figure("small_one", pd.DataFrame({"x": [1]}), top=np.float64(1.5), limits=limits)
    current.table(pd.DataFrame({"x": [1]}), "numbers", digits=2)
    current.bound("C23", "largest_error")
    current.settings("C8")
    current.provenance(images="0123456789abcdef01")
    kept = json.loads((folder / "drawn" / "01_salience_derivation.json").read_text())
    parameters = kept.pop("parameters")
    assert parameters == current.parameters
    assert (kept["tables"], kept["bounds"]) == ({"numbers": 2}, {"C23 largest_error": 1e-10})
    assert kept["settings"] == {"C8": {"sparsity": 0.95}}
    again = report.Report(current.notebook, parameters, folder, drawn=kept)
    files = {path: path.read_bytes() for path in folder.glob("01_*/*")}
    assert again.draw("small_one") == current.draw("small_one")
    assert SEEN[-1][2] == {"top": 1.5, "limits": limits}
    again.render("numbers")
    assert {path: path.read_bytes() for path in folder.glob("01_*/*")} == files


def test_every_criterion_has_a_look_of_its_own_and_an_unknown_one_is_grey():
    names = {re.sub(r"_\d+$", "", name) for name in snipnb.CRITERIA}  # draws of one rule look alike
    names = {n for n in names if n in style.LOOKS or n.rpartition("_")[2] not in style.CONTROLS}
    assert set(style.LOOKS) == names | {"iterative_magnitude"}  # which notebook 08 registers
    control = style.look("grasp_redrawn")
    assert (control.label, control.colour) == ("GraSP, made for other weights", style.look("grasp").colour)
    assert len({look.label for look in style.LOOKS.values()}) == len(style.LOOKS)
    assert style.look("snip").label == "SNIP"
    assert (style.look("mine").label, style.look("mine").colour) == ("mine", style.NEUTRAL)


def test_no_colour_has_two_meanings():
    criteria = [look.colour for look in style.LOOKS.values()]
    outcomes = [colour for _, colour, _ in sentences.OUTCOMES.values()]
    colours = [*criteria, *style.LAYER_COLOURS.values(), *style.CATEGORIES, *outcomes]
    assert len({*colours}) == len(colours)


def test_house_style_ignores_the_users_own(monkeypatch):
    plt.rcParams["axes.facecolor"] = "hotpink"
    style.use_house_style()
    assert plt.rcParams["axes.facecolor"] == "white"
    assert plt.rcParams["svg.hashsalt"] == "snipnb"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.txt"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
