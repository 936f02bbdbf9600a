from snipnb.publish import ledger
from tools import hero


def test_titles_speak_of_claims_and_verdicts_that_there_are():
    for claim_id, titles in hero.TITLES.items():
        words = {outcome["verdict"] for outcome in ledger.load_claims()[claim_id]["outcomes"]}
        assert titles.keys() - {""} <= words
        assert "" in titles
