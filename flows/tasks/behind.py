"""Find the months that a store lacks or has in an older edition. Bring each into the stores that are behind."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prefect import get_run_logger

from flows.connectors.known_months import known_publication
from flows.stores import STORES, Target, with_lake
from flows.stores.origins import FromEdition, FromLake, Origin, Web
from flows.tasks.bring import bring
from flows.tasks.policy import submit
from flows.tasks.stores import mark_checked
from flows.tasks.survey import ask_source, list_months, pinned_or_withdrawn
from flows.tlc.addresses import stored
from flows.tlc.catalog import Found, ListedMonth
from flows.tlc.errors import NotPublished
from flows.tlc.manifest import Manifest, Outcome
from flows.tlc.sources import Source
from flows.tlc.trips import Store, Terms, TripMonth


@dataclass(frozen=True)
class Stores:
    """The stores of a run, and the months that each had at the start of the run."""

    targets: Mapping[Store, Target]
    listed: Mapping[Store, Mapping[TripMonth, ListedMonth]]

    def manifest(self, store: Store, trip_month: TripMonth) -> Manifest | None:
        """Return a store's manifest of a month, or None."""
        month = self.listed[store].get(trip_month)
        return month.manifest if month else None

    def loaded_from(self, source: Source, colors: Collection[str]) -> Iterator[TripMonth]:
        """Yield every month of the colors that a store loaded from this source."""
        for months in self.listed.values():
            for trip_month, month in months.items():
                if trip_month.color in colors and month.manifest.url == stored(source.url(trip_month)):
                    yield trip_month

    def compare(self, source: Source, trip_months: Sequence[TripMonth]) -> list[Found]:
        """Ask the source for the months, and compare its answers with the stores. Keep the order of the months."""
        answers = submit(ask_source, source, trip_months).result()
        unfinished = {m for months in self.listed.values() for m, month in months.items() if not month.finished}

        def one(m: TripMonth) -> Found:
            url, manifests = source.url(m), {store: self.manifest(store, m) for store in self.targets}
            return Found(m, url, answers[m], manifests, m in unfinished, known_publication(m, url))

        return [one(trip_month) for trip_month in trip_months]

    def update(
        self, source: Source, month: Found, behind: Sequence[Store], on_store: Callable[[Outcome], object]
    ) -> Outcome:
        """Bring a month into the stores that are behind, one after another, and return the last outcome, with all warnings.

        `on_store` receives the outcome of each store. If the source gave no answer or refuses the month, raise its error
        after all stores are done.
        """
        warnings: tuple[str, ...] = ()
        for store in behind:
            loaded, kind = self.manifest(store, month.trip_month), STORES[store]
            # Keep the rules that the month was loaded with.
            terms = Terms(loaded.rule, loaded.schema_rule) if loaded else Terms(kind.rows)
            origin: Origin
            if kind.files == "lake":
                origin = FromLake()
            elif loaded and loaded.pinned:  # a person chose this edition
                origin = FromEdition(loaded.pinned, terms)
            else:
                origin = Web(source, terms, unattended=True)
            outcome = bring(month.trip_month, origin, self.targets[store])
            on_store(outcome)
            warnings += tuple(f"{store}: {warning}" for warning in outcome.warnings)
        if month.source_error:
            raise month.source_error
        return outcome.model_copy(update={"warnings": warnings})


def list_stores(target: Target, into: Iterable[Store], colors: Sequence[str]) -> Stores:
    """Check the stores and list their months. Add the lake if a store is loaded from it, because it must be up to date, too."""
    targets = {store: target.with_store(store) for store in with_lake(into)}
    listed = {store: submit(list_months, target, colors, "withdrawn").result() for store, target in targets.items()}
    mark_checked(targets.values())
    return Stores(targets, listed)


def log_found(found: Iterable[Found], taken: Iterable[Found]) -> None:
    """Log the months that are not published, those that a person decided about, and the reason to load each other month."""
    log = get_run_logger()
    for month in found:
        if decided := pinned_or_withdrawn(month):
            refused = "; its source does not have it" if isinstance(month.answer, NotPublished) else ""
            log.info("%s is %s; it is not updated%s", month.trip_month, decided, refused)
        elif isinstance(month.answer, NotPublished) and not month.source_error:
            log.info("%s", month.answer)
    for month in taken:
        log.info("%s: %s", month.trip_month, ", ".join(f"{store}: {month.status(store)}" for store in month.behind))
