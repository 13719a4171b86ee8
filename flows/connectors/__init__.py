"""One module per system: the web, the lake, the warehouse, Postgres. A module knows its system and no business rule."""
