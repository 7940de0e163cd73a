"""Who makes which trial: nothing is lost, made twice, or made beyond the budget."""

import time

from optuna.trial import TrialState

from repnoise.search.queue import ATTEMPTS, PATIENCE, Budget, Queue, begun, open_study


def queue(folder, **changes):
    study = open_study(folder, None, "search")
    options = {"budget": Budget(3), "seed": 0} | changes
    return Queue(study, folder, **options)


def test_a_trial_of_a_living_process_is_left_alone_and_that_of_a_dead_one_taken_up(tmp_path):
    mine, other = queue(tmp_path), queue(tmp_path)
    with other.open():
        with mine.open():
            trial = mine.next()
            chosen = trial.suggest_float("rate", 0.0, 1.0)
            following = other.next()
            assert (trial.number, following.number) == (0, 1)
            other.study.tell(following, 1.0)
        taken = other.next()
        assert taken.number == 0 and taken.suggest_float("rate", 0.0, 1.0) == chosen


def test_a_trial_on_another_machine_is_lost_after_a_while_without_a_sign_of_life(tmp_path):
    mine = queue(tmp_path)
    with mine.open():
        trial = mine.next()
        trial.set_user_attr("owner", {"host": "the old well", "lock": "nowhere"})
        trial.set_user_attr("seen", time.time() - PATIENCE / 2)
        assert mine.next().number == 1
        trial.set_user_attr("seen", time.time() - 2 * PATIENCE)
        assert mine.next().number == 0


def test_what_kills_its_process_every_time_is_given_up(tmp_path):
    for attempt in range(ATTEMPTS):
        mine = queue(tmp_path)
        with mine.open():
            trial = mine.next()
            assert (trial.number, trial.user_attrs["attempts"]) == (0, attempt + 1)
    mine = queue(tmp_path)
    with mine.open():
        assert mine.next().number == 1
    assert (
        mine.study.trials[0].state == TrialState.FAIL and "killed 5 times" in mine.study.trials[0].user_attrs["reason"]
    )


def test_no_trial_is_begun_beyond_the_budget_in_flops(tmp_path):
    mine = queue(tmp_path, budget=Budget(100, 2e9))
    count = 0
    with mine.open():
        while (trial := mine.next()) is not None:
            trial.set_user_attr("cost", {"flops": 7e8})
            mine.study.tell(trial, 0.0)
            count += 1
    assert count == 3


def test_of_two_that_ask_for_the_last_trial_of_a_database_at_once_one_gets_it(tmp_path):
    mine = queue(tmp_path, budget=Budget(1))
    with mine.open():
        first, second = mine._asked(0), mine._asked(1)
    assert first is not None and second is None
    assert [trial.number for trial in begun(mine.study.trials)] == [0]
