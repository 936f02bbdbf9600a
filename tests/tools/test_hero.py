import pytest

from snipnb._files import project_root
from snipnb.publish import ledger
from tools import hero

WORDS = [word for kind, words in ledger.WORDS.items() if kind != "registered" for word in words]


@pytest.mark.parametrize("word", [*WORDS, "not run"])
def test_every_word_of_a_verdict_has_one_tile(word):
    glyph, colour, name = hero.outcome(f"{word} (with a remark)")
    assert sum(word in words for words in hero.OUTCOMES) == 1
    assert (glyph, colour, name) in hero.OUTCOMES.values()


def test_tiles_differ_without_their_colours():
    glyphs, colours, names = zip(*hero.OUTCOMES.values(), strict=True)
    assert len(set(glyphs)) == len(set(colours)) == len(set(names)) == len(hero.OUTCOMES)


def test_a_word_that_no_ledger_has_is_refused():
    with pytest.raises(ValueError, match="a verdict must begin with a word of the ledger; got 'refuted'"):
        hero.outcome("refuted")


def test_titles_speak_of_claims_and_verdicts_that_there_are():
    for claim_id, titles in hero.TITLES.items():
        words = {outcome["verdict"] for outcome in ledger.load_claims()[claim_id]["outcomes"]}
        assert titles.keys() - {""} <= words
        assert "" in titles


def test_the_picture_is_the_same_each_time():
    figures = project_root() / "figures"
    assert hero.draw(figures) == hero.draw(figures)
