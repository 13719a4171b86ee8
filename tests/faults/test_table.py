"""The table of docs/reliability.md comes from results.json and shows what was lost."""

import json

from tests.faults.table import PAGE, RESULTS, collected, merged, page, table


def _line(fault: str, lost: str = "", *recoveries: float) -> dict[str, object]:
    return {"part": "crash", "fault": fault, "times": 2, "lost": lost, "recoveries_s": recoveries}


def test_the_page_has_the_table_of_the_results() -> None:
    records = json.loads(RESULTS.read_text("utf-8"))["records"]
    text = PAGE.read_text("utf-8")
    assert page(text, records) == text


def test_a_record_has_the_sum_of_all_tries_of_a_fault() -> None:
    lines = [_line("a kill", "", 1.0, 1.5), _line("a kill", "", 3.0), _line("a kill", "rows")]
    [record] = collected(lines, "abc1234", 0)
    assert (record["tried"], record["not_survived"]) == (6, 1)
    assert (record["recovery_median_s"], record["recovery_longest_s"]) == (1.5, 3.0)
    assert "not as expected in 1 cases" in table([record])


def test_a_new_result_replaces_the_old_one_of_its_fault() -> None:
    old = collected([_line("a kill"), _line("another")], "old", 0)
    new = collected([_line("a kill", "rows")], "new", 1)
    assert [(r["fault"], r["revision"]) for r in merged(old, new)] == [("a kill", "new"), ("another", "old")]
