"""Earlier editions of a month can be listed, compared, loaded again and deleted. No published edition is lost by accident."""

import hashlib
from contextlib import suppress
from typing import Any, Literal

import pytest

from flows.backfill import backfill
from flows.bring_up_to_date import bring_up_to_date
from flows.catalog import catalog
from flows.connectors.bucket import Bucket
from flows.etl_web_gcs import etl_parent_flow
from flows.prune_editions import prune_editions
from flows.stores import Target
from flows.stores.lake import Lake
from flows.stores.origins import Origin
from flows.stores.raw_zone import RawZone
from flows.tasks import behind
from flows.tasks.editions import Listing, delete_editions
from flows.tlc.errors import (
    MisconfiguredBlock,
    MonthsFailed,
    Overtaken,
    TripDataError,
    UnknownEdition,
    UnreadableFile,
    Vanished,
)
from flows.tlc.manifest import Changes, Outcome, Present
from flows.tlc.trips import Store, Terms, TripMonth, edition_key
from tests.flows.conftest import CREDENTIALS, LAKE, POSTGRES, Runs, dying, lake_of, no_progress, staged_by_hand
from tests.stores import Stores, same
from tests.strict_lake import StrictLake

ENDING = ".parquet"
AT_HOME = {"block_name": LAKE}


def republish(ours: Stores, month: TripMonth, edition: int) -> str:
    """Publish an edition on the site, and return its sha256."""
    ours.site.republish(f"{month.stem}{ENDING}", edition)
    return published(ours, month)


def published(ours: Stores, month: TripMonth) -> str:
    return hashlib.sha256(ours.site.file(f"{month.stem}{ENDING}").read_bytes()).hexdigest()


def in_raw_zone(ours: Stores, key: str) -> str:
    return hashlib.sha256(ours.blob(key).download_as_bytes()).hexdigest()


def two_editions(ours: Stores, runs: Runs, month: TripMonth) -> tuple[str, str]:
    """Load two editions of a month into the lake, and return their sha256."""
    runs.lake_by_hand(month)
    first = published(ours, month)
    second = republish(ours, month, 2)
    runs.lake_by_hand(month)
    return first, second


def listed(month: TripMonth, **parameters: Any) -> Listing:
    found = catalog(**(AT_HOME | {"editions": str(month)} | parameters))
    assert isinstance(found, Listing)
    return found


def test_the_raw_zone_keeps_the_earlier_edition_of_a_republished_file_with_its_metadata(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(month)
    before = ours.blob(month.raw_key(ENDING))
    before.reload()
    first, second = two_editions(ours, runs, month)
    plain = month.raw_key(ENDING)
    assert in_raw_zone(ours, plain) == second
    assert in_raw_zone(ours, edition_key(plain, first)) == first
    kept = ours.blob(edition_key(plain, first))
    kept.reload()
    assert kept.metadata.items() >= {k: v for k, v in before.metadata.items() if not k.startswith("x_")}.items()
    rows = listed(month).rows
    assert [(row[1], row[2]) for row in rows] == [(second[:12], "published"), (first[:12], "earlier")]


@pytest.mark.parametrize(
    ("owner", "name", "when"),
    [(RawZone, "copy_edition", "before"), (RawZone, "copy_edition", "after"), (Bucket, "copy", "after"),
     (Lake, "append_history", "before"), (Lake, "append_history", "after"), (Lake, "_publish_side_object", "before"),
     (Lake, "remember", "before")],
)  # fmt: skip
def test_a_run_that_dies_while_it_replaces_a_month_loses_no_edition_and_no_history(
    owner: type, name: str, when: Literal["before", "after"], month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(month)
    first = published(ours, month)
    second = republish(ours, month, 2)
    with dying(owner, name, when=when), pytest.raises(TripDataError):
        runs.lake_by_hand(month)
    lake = lake_of(LAKE)
    current = lake.current(month)
    assert current is not None
    assert lake.edition(month, first[:12]).sha256 == first
    assert lake.edition(month, current.sha256[:12]).sha256 == current.sha256
    third = republish(ours, month, 3)
    runs.lake_by_hand(month)
    kept = {edition.sha256 for edition in lake.editions(month)}
    assert {first, third, current.sha256} <= kept
    assert second in kept or current.sha256 == first
    editions = [manifest.sha256 for manifest in lake.history(month)]
    assert (editions[0], editions[-1]) == (first, third)
    assert current.sha256 in editions
    assert len(editions) == len({manifest.generation for manifest in lake.history(month)})


def test_an_earlier_edition_can_be_loaded_again_into_every_store_with_the_same_rows(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(month)
    first, old = published(ours, month), ours.in_lake(month)
    runs.postgres(month)
    old_in_postgres = ours.in_postgres(month)
    republish(ours, month, 2)
    for load in (runs.lake, runs.warehouse, runs.postgres):
        load(month)
    new = ours.in_lake(month)
    ours.site.forget_requests()

    back = runs.lake(month, edition=first[:12])
    assert (back.status, back.manifest.pinned, back.manifest.sha256) == ("replaced", first[:12], first)
    assert back.changes.updated
    assert same(ours.in_lake(month), old)
    assert in_raw_zone(ours, month.raw_key(ENDING)) == first
    assert runs.warehouse(month).manifest.pinned == first[:12]
    assert same(ours.in_warehouse(month), old)
    assert runs.postgres(month, edition=first, lake_block=LAKE).manifest.pinned == first[:12]
    assert same(ours.in_postgres(month), old_in_postgres)
    assert ours.requests(month) == []
    assert runs.lake(month, edition=first[:12]).status == "unchanged"
    assert [row[2] for row in listed(month).rows if row[1] == first[:12]] == ["published, pinned"]

    before = ours.manifest(month), ours.loads(month)
    with suppress(MonthsFailed):  # the files of some other tests' months are wrong on purpose
        bring_up_to_date(
            colors=[month.color], since=f"{month.year}-{month.month:02d}", until=f"{month.year}-{month.month:02d}",
            into=["lake", "warehouse", "database"], source=ours.official, block_name=LAKE, credentials_block=CREDENTIALS,
            dataset=ours.dataset, postgres_block=POSTGRES, expect_within=0,
        )  # fmt: skip
    assert (ours.manifest(month), ours.loads(month)) == before
    assert f"{month} is pinned in the lake, pinned in the database; it is not updated" in runs.logs()
    assert same(ours.in_lake(month), old)

    assert runs.lake(month).manifest.pinned == ""
    assert same(ours.in_lake(month), new)
    assert runs.postgres(month).manifest.pinned == ""


def test_pinning_the_present_edition_and_removing_the_pin_move_no_row(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(month)
    runs.postgres_by_hand(month)
    name, before = published(ours, month)[:12], ours.objects()[month.key]
    for load, more in ((runs.lake, {}), (runs.postgres, {"lake_block": LAKE})):
        pinned = load(month, edition=name, **more)
        assert (pinned.status, pinned.manifest.pinned) == ("unchanged", name)
        loose = load(month)
        assert (loose.status, loose.manifest.pinned) == ("unchanged", "")
    assert ours.objects()[month.key] == before
    assert ours.manifest(month)["pinned"] == ours.loads(month)["pinned"] == ""
    assert f"{month} is not pinned to edition {name} any more" in runs.logs()


def test_loading_an_edition_once_more_keeps_the_row_count_of_the_edition_before_it(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    loads = (runs.lake_by_hand, runs.postgres_by_hand)
    first = [load(month).manifest for load in loads]
    again = [load(month).manifest for load in loads]
    assert [manifest.known_rows for manifest in first + again] == [None] * 4
    republish(ours, month, 2)
    second = [load(month).manifest for load in loads]
    again = [load(month).manifest for load in loads]
    assert second[0].source_rows != first[0].source_rows
    assert [manifest.known_rows for manifest in second + again] == [first[0].source_rows] * 4


def test_the_error_for_an_unknown_edition_lists_the_known_ones(month: TripMonth, ours: Stores, runs: Runs) -> None:
    runs.lake_by_hand(month)
    before = ours.objects_of(month)
    with pytest.raises(
        UnknownEdition, match=f"no editions in the lake.*{published(ours, month)[:12]} .*bytes, fetched"
    ):
        runs.lake(month, edition="0123456789ab")
    with pytest.raises(UnknownEdition, match="first 12 or more hexadecimal digits"):
        runs.lake(month, edition="not hex")
    with pytest.raises(UnknownEdition, match="2 months are named; name only that month"):
        etl_parent_flow(month.color, 2021, [1, 2], block_name=LAKE, edition="0123456789ab")
    assert ours.objects_of(month) == before


def test_an_earlier_edition_stays_in_the_raw_zone_if_loading_it_again_fails(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = two_editions(ours, runs, month)
    monkeypatch.setattr("flows.tlc.stream.Tally.check", lambda *_: (_ for _ in ()).throw(wrong()))
    with pytest.raises(TripDataError, match="not by today's rules"):
        runs.lake(month, edition=first[:12])
    monkeypatch.undo()
    assert lake_of(LAKE).edition(month, first[:12]).sha256 == first


def wrong() -> Exception:
    from flows.tlc.errors import TooManyRejects

    return TooManyRejects("not by today's rules")


def test_two_editions_are_compared_by_rows_and_by_sums(month: TripMonth, ours: Stores, runs: Runs) -> None:
    with pytest.raises(TripDataError, match="two editions are needed"):
        listed(month, editions="", changes=str(month))
    first, second = two_editions(ours, runs, month)
    manifest = lake_of(LAKE).current(month)
    assert manifest is not None
    before = ours.objects_of(month)
    found = listed(month, editions="", changes=str(month))
    assert found.names == ("", first[:12], second[:12])
    counts = {name: int(new.replace(",", "")) for name, _, new in found.rows if name.startswith("rows ")}
    changes = Changes(**{name: counts[f"rows {name}"] for name in Changes.model_fields})
    assert changes == manifest.changes
    sums = {name: new for name, _, new in found.rows if name.startswith("sum of ")}
    assert sums["sum of total_amount, US$"] == f"{manifest.profile.sums['total_amount']:,.2f}"
    backwards = listed(month, editions="", changes=f"{month} {second[:12]} {first[:12]}")
    assert backwards.names == ("", second[:12], first[:12])
    assert ours.objects_of(month) == before


def test_the_editions_of_a_color_are_listed_and_two_questions_at_once_are_refused(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(month)
    assert str(month) in [row[0] for row in listed(month, editions=month.color).rows]
    with pytest.raises(TripDataError, match="give only one of"):
        listed(month, history=str(month))
    with pytest.raises(TripDataError, match="not a color and a month, such as green 2021-01"):
        listed(month, editions="", history="green")


def test_editions_are_deleted_only_by_a_rule_and_never_if_a_store_has_them(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(month)
    runs.postgres(month)
    editions = [published(ours, month)]
    for number in (2, 3, 4):
        editions.append(republish(ours, month, number))
        runs.lake_by_hand(month)
    lake = lake_of(LAKE)

    def kept() -> set[str]:
        return {edition.sha256 for edition in lake.editions(month)}

    def prune(**rule: Any) -> list[str]:
        text = f"{month.year}-{month.month:02d}"
        found = prune_editions(colors=[month.color], since=text, until=text, **(AT_HOME | rule))
        return [row[1] for row in found.rows]

    assert prune(action="delete") == []
    assert sorted(prune(keep="1")) == sorted(name[:12] for name in editions[:2])
    assert prune(older_than_days=1, action="delete") == []
    assert kept() == set(editions)
    places = {"stores": ["lake", "database"], "postgres_block": POSTGRES}
    assert prune(keep="1", action="delete", **places) == [editions[1][:12]]
    assert kept() == {editions[0], *editions[2:]}
    assert len(prune(keep="0", action="delete")) == 2
    assert kept() == {editions[3]}
    with pytest.raises(TripDataError, match=r"BigQuery has no month of .*: name the right database or dataset"):
        prune(keep="0", action="delete", stores=["warehouse"], dataset="mistyped", credentials_block=CREDENTIALS)
    with pytest.raises(TripDataError, match="give one of them"):
        prune(keep="1", older_than_days=3)
    with pytest.raises(TripDataError, match="give a number of editions, or all"):
        prune(keep="some")


def test_the_published_file_of_a_month_stays_if_its_object_was_deleted_by_hand(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    _, second = two_editions(ours, runs, month)
    ours.blob(month.key).delete()
    text = f"{month.year}-{month.month:02d}"
    prune_editions(colors=[month.color], since=text, until=text, keep="0", action="delete", **AT_HOME)
    assert [edition.sha256 for edition in lake_of(LAKE).editions(month)] == [second]
    assert runs.lake_by_hand(month).status == "loaded"


def test_a_damaged_month_that_is_pinned_is_loaded_from_its_edition_again(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    first, _ = two_editions(ours, runs, month)
    runs.lake(month, edition=first[:12])
    lake = lake_of(LAKE)
    lake.remember(lake.required(month).model_copy(update={"fault": "found by a verification"}))
    [outcome] = backfill(months=[str(month)], into=["lake"], source=ours.official, **AT_HOME)
    assert (outcome.manifest.sha256, outcome.manifest.pinned, outcome.manifest.fault) == (first, first[:12], "")


def test_an_edition_that_was_changed_by_hand_is_neither_loaded_nor_deleted(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    """The bytes are those of another edition, so they can be read. Their metadata says that they are the first one."""
    first, second = two_editions(ours, runs, month)
    before = ours.objects_of(month)
    blob = ours.blob(edition_key(month.raw_key(ENDING), first))
    blob.reload()
    metadata, other_bytes = blob.metadata, ours.blob(month.raw_key(ENDING)).download_as_bytes()
    blob.metadata = metadata
    blob.upload_from_string(other_bytes)
    for load, more in ((runs.lake, {}), (runs.postgres, {"lake_block": LAKE})):
        with pytest.raises((UnreadableFile, MonthsFailed), match="does not have the SHA-256 of the published file"):
            load(month, edition=first[:12], **more)
    assert set(ours.objects_of(month)) == set(before)
    assert ours.manifest(month)["sha256"] == second


@pytest.mark.parametrize("edition", ["present", "new"])
@pytest.mark.parametrize("keeps_metadata", [True, False], ids=["changed", "foreign"])
def test_no_file_is_replaced_while_another_object_has_the_name_of_its_edition_or_of_the_new_one(
    edition: str, keeps_metadata: bool, month: TripMonth, ours: Stores, runs: Runs, strict_lake: StrictLake
) -> None:
    _, second = two_editions(ours, runs, month)
    third, plain = republish(ours, month, 3), month.raw_key(ENDING)
    sha256 = second if edition == "present" else third
    in_the_way = ours.blob(edition_key(plain, sha256))
    in_the_way.metadata = {"sha256": sha256} if keeps_metadata else {}
    in_the_way.upload_from_string(b"other bytes")
    advice = rf"{in_the_way.name} should be a copy of .*\. Move it away, and run again\. The raw file was not rep"
    with pytest.raises(MisconfiguredBlock, match=advice):
        runs.lake_by_hand(month)
    assert (in_raw_zone(ours, plain), ours.manifest(month)["sha256"]) == (second, second)
    assert in_the_way.download_as_bytes() == b"other bytes"

    in_the_way.bucket.rename_blob(in_the_way, f"{in_the_way.name}.changed")
    runs.lake_by_hand(month)
    assert [in_raw_zone(ours, edition_key(plain, sha256)) for sha256 in (second, third)] == [second, third]
    assert in_raw_zone(ours, plain) == ours.manifest(month)["sha256"] == third


def test_a_changed_file_whose_edition_is_intact_is_replaced(
    month: TripMonth, ours: Stores, runs: Runs, strict_lake: StrictLake
) -> None:
    _, second = two_editions(ours, runs, month)
    blob = ours.blob(month.raw_key(ENDING))
    blob.reload()
    blob.metadata = dict(blob.metadata)
    blob.upload_from_string(b"other bytes")
    third = republish(ours, month, 3)
    runs.lake_by_hand(month)
    assert in_raw_zone(ours, edition_key(month.raw_key(ENDING), second)) == second
    assert in_raw_zone(ours, month.raw_key(ENDING)) == third


def test_an_edition_that_is_deleted_during_its_load_is_not_published(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    first = two_editions(ours, runs, month)[0][:12]
    lake = lake_of(LAKE)
    before, raw = ours.in_lake(month), lake.edition(month, first)
    staged = lake.stage(raw, Terms(), "by-hand", no_progress)
    [edition] = [e for e in lake.editions(month) if e.name == first]
    lake.delete_edition(edition)
    with pytest.raises(Vanished, match=r"was deleted or replaced during this run\. Nothing was published"):
        lake.publish(staged, lake.present(month), "by-hand")
    assert same(ours.in_lake(month), before)


def test_an_edition_that_was_loaded_after_it_was_chosen_is_not_deleted(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    first = two_editions(ours, runs, month)[0][:12]
    lake = lake_of(LAKE)
    editions = lake.editions(month)
    runs.lake(month, edition=first)
    delete_editions.fn([Target("lake", LAKE)], [e for e in editions if e.name == first])
    assert first in [edition.name for edition in lake.editions(month)]


@pytest.mark.parametrize("store", ["database", "warehouse"])
def test_an_edition_that_another_store_was_loaded_with_after_it_was_chosen_is_not_deleted(
    store: Store, month: TripMonth, ours: Stores, runs: Runs
) -> None:
    first, second = two_editions(ours, runs, month)
    lake = lake_of(LAKE)
    editions = [edition for edition in lake.editions(month) if edition.sha256 == first]
    if store == "database":
        runs.postgres(month, edition=first[:12], lake_block=LAKE)
    else:
        runs.lake(month, edition=first[:12])
        runs.warehouse(month)
        runs.lake(month)
    targets = [Target("lake", LAKE), Target(store, LAKE, CREDENTIALS, ours.dataset, POSTGRES)]
    delete_editions.fn(targets, editions)
    assert {first, second} == {edition.sha256 for edition in lake.editions(month)}
    delete_editions.fn(targets[:1], editions)
    assert {second} == {edition.sha256 for edition in lake.editions(month)}


def test_a_slow_run_does_not_replace_a_newer_edition(
    month: TripMonth, ours: Stores, runs: Runs, strict_lake: StrictLake
) -> None:
    lake = lake_of(LAKE)
    republish(ours, month, 1)
    staged = staged_by_hand(lake, month, ours.official)
    second = republish(ours, month, 2)
    runs.lake_by_hand(month)
    newer = ours.in_lake(month)
    with pytest.raises(Vanished, match="was loaded from another file during this run"):
        lake.publish(staged, Present(), "slow")
    assert same(ours.in_lake(month), newer)
    assert ours.manifest(month)["sha256"] == second


def test_an_edition_that_is_deleted_while_it_is_compared_is_not_published(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = two_editions(ours, runs, month)[0][:12]
    lake, before, compare = lake_of(LAKE), ours.in_lake(month), Lake._changes
    [edition] = [e for e in lake.editions(month) if e.name == first]

    def deleting(store: Lake, *arguments: Any) -> Changes:
        changes = compare(store, *arguments)
        delete_editions.fn([Target("lake", LAKE)], [edition])
        return changes

    monkeypatch.setattr(Lake, "_changes", deleting)
    staged = lake.stage(lake.edition(month, first), Terms(), "by-hand", no_progress)
    with pytest.raises(Vanished, match="was deleted or replaced during this run"):
        lake.publish(staged, lake.present(month), "by-hand")
    assert same(ours.in_lake(month), before)


@pytest.mark.parametrize("decision", ["pinned", "withdrawn"])
def test_a_decision_during_an_update_of_all_months_stays(
    decision: str, month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = two_editions(ours, runs, month)[0][:12]
    republish(ours, month, 3)
    bring = behind.bring

    def late(trip_month: TripMonth, origin: Origin, into: Target) -> Outcome:
        if trip_month == month:
            if decision == "pinned":
                runs.lake(month, edition=first)
            else:
                lake_of(LAKE).withdraw(month, "by-hand")
        return bring(trip_month, origin, into)

    monkeypatch.setattr(behind, "bring", late)
    this = f"{month.file_month:%Y-%m}"
    with suppress(MonthsFailed):  # other tests spoil months of the same color
        bring_up_to_date(
            [month.color], since=this, until=this, into=["lake"], source=ours.official, expect_within=0, **AT_HOME
        )
    manifest = ours.manifest(month)
    assert (manifest["pinned"] == first) if decision == "pinned" else manifest["withdrawn_at"]


@pytest.mark.parametrize("lost", [False, True], ids=["", "with its edition"])
def test_a_pinned_month_that_vanished_is_loaded_again(lost: bool, month: TripMonth, ours: Stores, runs: Runs) -> None:
    first, second = two_editions(ours, runs, month)
    runs.lake(month, edition=first[:12])
    before = ours.in_lake(month)
    ours.blob(month.key).delete()
    if lost:
        for key in (month.raw_key(ENDING), edition_key(month.raw_key(ENDING), first)):
            ours.blob(key).delete()
    this = f"{month.file_month:%Y-%m}"
    with suppress(MonthsFailed):  # other tests spoil months of the same color
        bring_up_to_date(
            [month.color], since=this, until=this, into=["lake"], source=ours.official, expect_within=0, **AT_HOME
        )
    manifest = ours.manifest(month)
    assert (manifest["pinned"], manifest["sha256"]) == (("", second) if lost else (first[:12], first))
    assert lost or same(ours.in_lake(month), before)
    assert (f"{month}: the month vanished, and so did the edition that it was pinned to" in runs.logs()) == lost


def test_a_pin_of_the_present_edition_stays_if_the_lake_is_moved(month: TripMonth, ours: Stores, runs: Runs) -> None:
    first = runs.lake(month).manifest
    runs.lake(month, edition=first.edition)
    ours.blob(month.key).bucket.copy_blob(ours.blob(month.key), ours.blob(month.key).bucket, f"data/{month.key}")
    moved = lake_of(LAKE).current(month)
    assert moved
    assert moved.generation == ours.objects()[month.key] != first.generation
    assert moved.pinned == first.edition


def test_an_edition_that_another_run_deletes_at_the_same_time_is_no_error(
    month: TripMonth, ours: Stores, runs: Runs, strict_lake: StrictLake
) -> None:
    first = two_editions(ours, runs, month)[0]
    lake = lake_of(LAKE)
    [edition] = [edition for edition in lake.editions(month) if edition.sha256 == first]
    for _ in range(2):
        delete_editions.fn([Target("lake", LAKE)], [edition])
    assert first not in [edition.sha256 for edition in lake.editions(month)]
    current = edition_key(month.raw_key(ENDING), "other")
    ours.blob(current).upload_from_string(b"replaced")
    with pytest.raises(Overtaken, match="was written by another run meanwhile"):
        lake.bucket.delete(current, edition.objects[0].generation)
