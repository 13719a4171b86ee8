"""The artifacts of a run: one report per month with a chart, and a table of months."""

import base64
import json
import re
import xml.etree.ElementTree as ET

import pyarrow.compute as pc

from flows.tlc.quality import money, pickup
from flows.tlc.trips import TripMonth
from tests.flows.conftest import Runs
from tests.stores import Stores

MONTHS = [TripMonth("yellow", 2024, 1), TripMonth("yellow", 2024, 2)]  # no other test of the file uses these months
SVG = "{http://www.w3.org/2000/svg}"


def picture(report: str) -> ET.Element:
    """Return the chart in a report as the browser receives it."""
    [data] = re.findall(r"!\[[^]]+\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", report)
    return ET.fromstring(base64.b64decode(data))  # noqa: S314 - made by this project


def test_a_report_has_rows_sums_odd_trips_and_a_chart_of_days_with_the_month_before(ours: Stores, runs: Runs) -> None:
    for load, store in ((runs.lake, "lake"), (runs.postgres, "database")):
        for month in MONTHS:
            load(month)
        january, february = [runs.artifacts(f"{m.stem.replace('_', '-')}-{store}")[-1] for m in MONTHS]
        trips = ours.in_lake(MONTHS[1]) if store == "lake" else ours.in_postgres(MONTHS[1])
        assert f"**{trips.num_rows:,}**" in february
        for name in money("yellow"):
            assert f"| {name} | {round(pc.sum(trips[name]).as_py() or 0, 2):,.2f} |" in february
        refunds = pc.sum(pc.less(trips["total_amount"], 0)).as_py()
        assert f"| negative total (refund or correction) | note | {refunds:,} |" in february
        assert "Trips of other months in this file: 2008-12 (" in february
        assert "not in the file, so null: `cbd_congestion_fee`, `request_source`, `pickup_longitude`" in february

        if store == "lake":
            assert f"<{ours.official.format(**vars(MONTHS[1]))}>" in february
            assert f"/storage/browser/_details/{ours.bucket}/data/{MONTHS[1].key})" in february
        days = pc.count_distinct(pc.filter(trips[pickup("yellow")].cast("date32", safe=False), in_month(trips))).as_py()
        drawing = picture(february)
        assert len(drawing.findall(f"{SVG}rect")) == 1 + days  # the background, and one bar per day
        assert drawing.find(f"{SVG}polyline") is not None
        assert picture(january).find(f"{SVG}polyline") is None


def in_month(trips):
    times = trips[pickup("yellow")]
    return pc.and_(pc.equal(pc.year(times), 2024), pc.equal(pc.month(times), 2))


def test_the_profile_is_in_the_manifest_and_in_both_loads_tables(month: TripMonth, ours: Stores, runs: Runs) -> None:
    outcome = runs.lake(month)
    runs.warehouse(month)
    runs.postgres(month, rows="all")
    profile = ours.manifest(month)["profile"]
    assert sum(profile["days"].values()) + sum(profile["elsewhere"].values()) == outcome.manifest.loaded
    assert ours.loads(month)["profile"] == json.dumps(profile)
