"""The tables and the picture of docs/speed.md come from bench/results.json."""

import json
from pathlib import Path
from xml.etree import ElementTree

from bench import SMALL_MONTH
from bench.page import CHART, NAMES, PAGE, RESULTS, TITLES, chart, page, tables

MACHINE = {"cpus": 2, "memory_gb": 8.0, "system": "Linux", "load": 0.1, "revision": "abc1234", "dlt": "1.31.0"}


def _record(contender: str, net: float, work: str = "web_to_lake_csv") -> dict[str, object]:
    cost = {"wall_s": net + 5, "net_s": net, "cpu_s": net, "cores_busy": 1.5, "peak_rss_mb": 100.0}
    return {"work": work, "contender": contender, **cost, "rows": 1000, "runs": 3}


def test_the_page_and_the_picture_are_those_of_the_results() -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    text = PAGE.read_text("utf-8")
    assert page(text, results) == text
    assert chart(results["records"]) == CHART.read_text("utf-8")
    assert {record["work"] for record in results["records"]} <= TITLES.keys()
    assert {r["contender"] for r in results["records"] if r["work"] not in {"start_up", "empty_flow"}} <= NAMES.keys()


def test_a_ratio_is_relative_to_this_project_and_the_fastest_comes_first() -> None:
    text = tables(MACHINE, [_record("ours", 2), _record("seed", 16), _record("pyarrow", 1)])
    rows = [line.split(" | ")[:2] for line in text.splitlines() if line.endswith("| 3 |")]
    assert rows == [["| plain pyarrow", "0.50"], ["| this project", "1.00"], ["| pandas script", "8.00"]]
    assert "was busy" not in text


def test_the_fixed_cost_is_that_of_one_small_month() -> None:
    record = _record("ours", 4.8, "small_months") | {"rows": 12 * SMALL_MONTH}
    assert "The fixed cost of a month is 0.40 s" in tables(MACHINE, [record])


def test_a_re_published_month_is_compared_with_a_first_load_and_a_program_with_prefects_import() -> None:
    first = _record("ours", 2, "web_to_postgres_first") | {"rows": 100}
    changed = _record("ours", 5, "web_to_postgres_changed") | {"rows": 200}
    assert "The speed is 0.80 × that of a first load." in tables(MACHINE, [first, changed])
    assert "that of a first load" not in tables(MACHINE, [changed])
    programs = [_record("import prefect", 2, "start_up"), _record("flows/verify.py --help", 1, "start_up")]
    text = tables(MACHINE, programs)
    assert "| | × `import prefect` | net s |" in text
    assert "| `flows/verify.py --help` | 0.50 | 1.00 |" in text


def test_a_page_from_a_busy_machine_says_so() -> None:
    assert "**The machine was busy**" in tables(MACHINE | {"load": 3.0}, [_record("ours", 2)])


def test_a_page_without_results_says_how_to_get_them() -> None:
    assert "run `make bench`" in tables(MACHINE, [])


def test_a_work_that_took_no_time_has_no_ratios_and_no_bars() -> None:
    records = [_record("ours", 0), _record("seed", 16)]
    assert "| this project |  | 0.00 |" in tables(MACHINE, records)
    assert "<rect x" not in chart(records)


def test_a_bar_is_longer_for_a_slower_contender_and_stays_in_the_picture() -> None:
    picture = ElementTree.fromstring(chart([_record("ours", 2), _record("seed", 16), _record("dlt_merge", 2000)]))  # noqa: S314
    *bars, last = [float(bar.attrib["width"]) for bar in picture.iter() if bar.get("height") == "14"]
    assert bars == sorted(bars) == bars
    assert bars[-1] < last < float(picture.attrib["width"]) - 300


def test_a_contender_of_the_peers_environment_imports_no_package_of_the_project() -> None:
    root = Path(__file__).resolve().parents[2]
    for name in ("peers", "plain", "process"):
        lines = (root / "bench" / f"{name}.py").read_text("utf-8").splitlines()
        assert not [line for line in lines if line.startswith(("from flows", "from local", "import flows"))]
