from reports.text.promotion import promotions


def test_a_promotion_without_its_trial_has_dashes(study):
    def orphan(session, runs):
        runs[-1].parent_run_id = None

    _, sentence, table = promotions(study(orphan, promotion="complete"))
    assert "a trial that is not recorded" in sentence.text
    assert {row[1] for row in table.rows} == {"–"}
